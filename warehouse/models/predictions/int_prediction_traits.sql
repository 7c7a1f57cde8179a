{{ config(materialized='table') }}

-- What tells how sure a model's prediction can be, in classes: how much is known of the place, how far the last known
-- price of the place is from the prediction, and how far the home is from the ordinary. With the error, once known:
-- what predictions are judged by finds its price here, among the rows that were predicted, not among all.
with predictions as (
    select * from {{ source('predictions', 'predictions') }}
    where kind = 'model' and {{ is_positive('predicted_price') }}
),

features as (
    select * from {{ ref('features') }}
),

beside as (
    select
        predictions.observation_id,
        predictions.model_version,
        predictions.split,
        predictions.role,
        predictions.mode,
        predictions.month,
        predictions.area,
        predictions.predicted_price,
        coalesce(predictions.imputation_error, 0) as imputation_error,
        case when features.is_price_valid and features.price > 0 then features.price end as actual_price,
        features.history_n,
        features.persistence_price,
        features.target_offset
    from predictions
    inner join features on predictions.observation_id = features.observation_id
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
        role,
        mode,
        month,
        predicted_price,
        actual_price,
        imputation_error,
{{ trait_classes() }},
        abs(ln(predicted_price / actual_price)) as log_error
    from distances
)

select * from final
