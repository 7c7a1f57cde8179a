{{ config(materialized='view') }}

-- Predictions beside the price that came, never a simulated one. A view: monitoring reads a few columns of it, and a
-- stored copy would double the largest table.
with predictions as (
    {{- predictions_and_baselines([
        'observation_id', 'model_version', 'kind', 'split', 'observed_on', 'month', 'area', 'locality',
        'predicted_price', 'scored_at',
    ]) }}
),

actuals as (
    select * from {{ ref('actuals') }}
    where source <> 'simulated'
),

matched as (
    select
        predictions.*,
        actuals.actual_price,
        actuals.is_price_valid,
        actuals.price_decile,
        actuals.landed_at,
        {{ is_positive('predictions.predicted_price') }} and actuals.actual_price > 0 as is_ratio_known
    from predictions
    inner join actuals on predictions.observation_id = actuals.observation_id
),

final as (
    select
        observation_id,
        model_version,
        kind,
        -- the price came after the prediction; an online one may be of a home that the version learned from
        case when split = 'to_score' and landed_at >= scored_at then 'holdout' else split end as split,
        observed_on,
        month,
        area,
        locality,
        price_decile,
        predicted_price,
        actual_price,
        is_price_valid,
        case when is_ratio_known then predicted_price / actual_price end as ratio,
        predicted_price - actual_price as error,
        case when is_ratio_known then 100 * (predicted_price - actual_price) / actual_price end as pct_error,
        {{ days_between('scored_at', 'landed_at') }} as lag_days,
        scored_at
    from matched
)

select * from final
