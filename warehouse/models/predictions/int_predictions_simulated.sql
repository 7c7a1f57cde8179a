{{ config(materialized='view') }}

-- Predictions beside simulated prices. Apart from predictions_matched, so that nothing judges by them by mistake.
with predictions as (
    {%- for relation in [source('predictions', 'predictions'), ref('baseline_predictions')] %}
    select
        observation_id,
        model_version,
        kind,
        split,
        month,
        area,
        predicted_price
    from {{ relation }}
    {{ 'union all' if not loop.last }}
    {%- endfor %}
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
