{{ config(materialized='view') }}

-- Known prices, when they landed and which price class of their month they are in.
with priced as (
    select * from {{ ref('features') }}
    where price is not null
),

files as (
    select
        batch,
        max(loaded_at) as loaded_at
    from {{ source('raw', 'files') }}
    group by batch
),

price_deciles as (
    select * from {{ ref('price_deciles') }}
),

final as (
    select
        priced.observation_id,
        priced.price as actual_price,
        priced.is_price_valid,
        cast(
            1
            {%- for tenth in range(1, 10) %}
            + case when priced.price > price_deciles.p{{ tenth }}0 then 1 else 0 end
            {%- endfor %}
            as integer
        ) as price_decile,
        priced.month,
        priced.observed_on,
        files.loaded_at as landed_at
    from priced
    inner join price_deciles on priced.month = price_deciles.month
    left join files on priced._batch = files.batch
)

select * from final
