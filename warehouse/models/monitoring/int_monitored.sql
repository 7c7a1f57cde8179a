{{ config(materialized='view') }}

-- Errors that monitoring measures: of real prices, of those that were learned from, and apart from them of simulated
-- ones.
{%- set columns = [
    'observation_id', 'model_version', 'kind', 'split', 'month', 'area', 'predicted_price', 'actual_price',
] %}
with matched as (
    select * from {{ ref('predictions_matched') }}
    where ratio is not null
),

fitted as (
    select * from {{ ref('int_fitted') }}
),

simulated as (
    select
        *,
        cast(null as integer) as price_decile,
        false as is_price_valid
    from {{ ref('int_predictions_simulated') }}
),

together as (
    {%- for relation in ['matched', 'fitted', 'simulated'] %}
    select
        {{ columns | join(',\n        ') }},
        price_decile,
        is_price_valid,
        {{ relation == 'simulated' }} as is_simulated
    from {{ relation }}
    {{ 'union all' if not loop.last }}
    {%- endfor %}
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
        is_simulated,
        predicted_price / actual_price as ratio,
        predicted_price - actual_price as error,
        100 * (predicted_price - actual_price) / actual_price as pct_error
    from together
)

select * from final
