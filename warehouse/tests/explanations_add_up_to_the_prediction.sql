-- Integrity: the contributions of a prediction sum to it, within one part in ten thousand. What the newest load
-- changed; older rows were tested when they were new, and a prediction that was made again since is explained next.
with explained as (
    select
        observation_id,
        model_version,
        built_through_batch,
        sum(contribution) as total
    from {{ source('predictions', 'explanations') }}
    where
        built_through_batch = (
            select max(newest.built_through_batch) from {{ source('predictions', 'explanations') }} as newest
        )
    group by observation_id, model_version, built_through_batch
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
        and explained.built_through_batch = predictions.built_through_batch
where abs(explained.total - predictions.predicted_price) > 1e-4 * predictions.predicted_price
