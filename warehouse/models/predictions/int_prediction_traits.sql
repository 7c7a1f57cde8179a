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

beside as (
    select
        predictions.observation_id,
        predictions.model_version,
        predictions.split,
        predictions.month,
        predictions.area,
        predictions.predicted_price,
        features.history_n,
        features.persistence_price,
        features.target_offset,
        abs(ln(predictions.predicted_price / actuals.actual_price)) as log_error
    from predictions
    inner join features on predictions.observation_id = features.observation_id
    left join actuals on predictions.observation_id = actuals.observation_id
),

distances as (
    select
        *,
{{ trait_distances() }}
    from beside
),

final as (
    select
        observation_id,
        model_version,
        split,
        month,
        predicted_price,
{{ trait_classes() }},
        log_error
    from distances
)

select * from final
