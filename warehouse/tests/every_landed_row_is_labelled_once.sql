-- Integrity: raw and labelled hold the same rows.
with landed as (
    select
        _batch,
        count(*) as n
    from {{ source('raw', 'observations') }}
    group by 1
),

labelled as (
    select
        _batch,
        count(*) as n
    from {{ ref('int_observations_labelled') }}
    group by 1
)

select
    landed._batch,
    landed.n as landed,
    labelled.n as labelled
from landed
full outer join labelled on landed._batch = labelled._batch
where landed.n is distinct from labelled.n
