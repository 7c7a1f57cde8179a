-- Integrity: features hold exactly the rows that count, under the same keys.
select
    current_rows.observation_id as accepted,
    features.observation_id as with_features
from {{ ref('int_observations_current') }} as current_rows
full outer join {{ ref('features') }} as features
    on current_rows._batch = features._batch and current_rows._row = features._row
where current_rows.observation_id is distinct from features.observation_id
