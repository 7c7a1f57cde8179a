{{ config(materialized='table') }}

-- What tells how sure a model's prediction can be, in classes: how much is known of the place, how far the last known
-- price of the place is from the prediction, and how far the home is from the ordinary. With the error, once known.
with predictions as (
    select * from {{ source('predictions', 'predictions') }}
    where kind = 'model' and {{ is_positive('predicted_price') }}
),

features as (
    select * from {{ ref('features') }}
),

actuals as (
    select * from {{ ref('actuals') }}
    where is_price_valid and actual_price > 0
),

distances as (
    select
        predictions.observation_id,
        predictions.model_version,
        predictions.split,
        predictions.month,
        predictions.predicted_price,
        coalesce(predictions.area, 'unknown') as area,
        features.history_n,
        abs(ln(predictions.predicted_price / features.persistence_price)) as log_distance_to_persistence,
        abs(ln(predictions.predicted_price) - features.target_offset) as log_distance_to_level,
        abs(ln(predictions.predicted_price / actuals.actual_price)) as log_error
    from predictions
    inner join features on predictions.observation_id = features.observation_id
    left join actuals on predictions.observation_id = actuals.observation_id
),

final as (
    select
        observation_id,
        model_version,
        split,
        month,
        predicted_price,
        {{ class_of('history_n', [0, 1, 3, 7, 15]) }} as history,
        {{ class_of('log_distance_to_persistence', [0.02, 0.05, 0.1, 0.2]) }} as surprise,
        {{ class_of('log_distance_to_level', [0.1, 0.2, 0.3, 0.5]) }} as rarity,
        area,
        log_error
    from distances
)

select * from final
