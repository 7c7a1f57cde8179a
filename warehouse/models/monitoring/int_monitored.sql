{{ config(materialized='view') }}

-- Errors that monitoring measures: of real prices, of those that were learned from, and apart from them of simulated
-- ones.
{%- set columns = [
    'observation_id', 'model_version', 'kind', 'split', 'month', 'area', 'price_decile', 'predicted_price', 'actual_price',
    'is_price_valid', 'ratio', 'error', 'pct_error',
] %}
with matched as (
    select * from {{ ref('predictions_matched') }}
    where ratio is not null
),

real as (
    select {{ columns | join(', ') }} from matched
    union all
    select {{ columns | join(', ') }} from {{ ref('int_fitted') }}
),

simulated as (
    select * from {{ ref('int_predictions_simulated') }}
),

final as (
    select
        observation_id,
        model_version,
        kind,
        split,
        month,
        area,
        price_decile,
        predicted_price,
        actual_price,
        is_price_valid,
        false as is_simulated,
        ratio,
        error,
        pct_error
    from real
    union all
    select
        observation_id,
        model_version,
        kind,
        split,
        month,
        area,
        cast(null as integer) as price_decile,
        predicted_price,
        actual_price,
        false as is_price_valid,
        true as is_simulated,
        predicted_price / actual_price as ratio,
        predicted_price - actual_price as error,
        100 * (predicted_price - actual_price) / actual_price as pct_error
    from simulated
)

select * from final
