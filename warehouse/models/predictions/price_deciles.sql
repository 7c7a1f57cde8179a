{{ config(materialized='table') }}

-- Bounds of the ten price classes of each month, from all known prices of the month: an observation's class is the
-- same whichever version predicted it.
with priced as (
    select
        month,
        price
    from {{ ref('features') }}
    where price is not null
),

bounds as (
    select
        month,
        count(*) as n,
        {{ quantiles_of('price', [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]) }} as bounds
    from priced
    group by month
),

final as (
    select
        month,
        n
        {%- for tenth in range(1, 10) %},
        {{ list_item('bounds', tenth) }} as p{{ tenth }}0
        {%- endfor %}
    from bounds
)

select * from final
