-- Integrity: features hold exactly the rows that count, under the same keys; compared load by load.
with accepted as (
    select
        _batch,
        count(*) as n,
        {{ content_fingerprint(['_row', 'observation_id']) }} as fingerprint
    from {{ ref('int_observations_current') }}
    group by _batch
),

with_features as (
    select
        _batch,
        count(*) as n,
        {{ content_fingerprint(['_row', 'observation_id']) }} as fingerprint
    from {{ ref('features') }}
    group by _batch
)

select
    coalesce(accepted._batch, with_features._batch) as _batch,
    accepted.n as accepted,
    with_features.n as with_features
from accepted
full outer join with_features on accepted._batch = with_features._batch
where
    accepted.n is distinct from with_features.n
    or accepted.fingerprint is distinct from with_features.fingerprint
