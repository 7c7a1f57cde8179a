{{ config(materialized='table') }}

-- What is monitored, with a fingerprint of its rows: a series is measured again only when a row of it changed.
with matched as (
    select * from {{ ref('int_monitored') }}
),

final as (
    select
        split,
        model_version,
        max(kind) as kind,
        count(*) as n,
        {{ content_fingerprint([
            'split', 'model_version', 'observation_id', 'month', 'area', 'price_decile', 'is_price_valid',
            'actual_price', 'predicted_price',
        ]) }} as fingerprint
    from matched
    group by split, model_version
)

select * from final
