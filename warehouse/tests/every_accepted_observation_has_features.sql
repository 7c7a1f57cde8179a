-- Integrity: features hold exactly the accepted observations.
select coalesce(accepted.observation_id, features.observation_id) as observation_id
from {{ ref('int_observations') }} as accepted
full outer join {{ ref('features') }} as features on accepted.observation_id = features.observation_id
where accepted.observation_id is null or features.observation_id is null
