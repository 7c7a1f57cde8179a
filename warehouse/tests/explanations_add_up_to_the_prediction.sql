-- Integrity: the contributions of a prediction sum to it, within one part in ten thousand.
with explained as (
    select
        observation_id,
        model_version,
        sum(contribution) as total
    from {{ source('predictions', 'explanations') }}
    group by observation_id, model_version
)

select
    explained.observation_id,
    explained.model_version,
    explained.total,
    predictions.predicted_price
from explained
inner join {{ source('predictions', 'predictions') }} as predictions
    on
        explained.observation_id = predictions.observation_id
        and explained.model_version = predictions.model_version
where abs(explained.total - predictions.predicted_price) > 1e-4 * predictions.predicted_price
