{{ config(materialized='table') }}

-- Predictions beside simulated prices. Apart from predictions_matched, so that nothing judges by them by mistake.
with predictions as (
    {{- predictions_and_baselines([
        'observation_id', 'model_version', 'kind', 'split', 'month', 'area', 'predicted_price',
    ]) }}
),

simulated as (
    select * from {{ ref('actuals') }}
    where source = 'simulated'
),

final as (
    select
        predictions.*,
        simulated.actual_price
    from predictions
    inner join simulated on predictions.observation_id = simulated.observation_id
    where {{ is_positive('predictions.predicted_price') }}
)

select * from final
