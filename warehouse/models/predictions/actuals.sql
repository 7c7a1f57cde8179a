{{ config(materialized='view') }}

-- Known prices, where they came from, when they landed and which price class of their month they are in.
with observations as (
    select * from {{ ref('features') }}
),

later as (
    select * from {{ source('raw', 'actuals') }}
),

priced as (
    select
        observations.*,
        coalesce(later.source, 'landed') as source
    from observations
    left join later
        on observations.observation_id = later.observation_id and observations._batch = later.applied_batch
    where observations.price is not null
),

newest_simulated as (
    select
        *,
        row_number() over (
            partition by observation_id order by coalesce(reported_at, _loaded_at) desc, _batch desc, _row desc
        ) as place
    from later
    where status = 'simulated'
),

simulated as (
    select
        observations.observation_id,
        {{ try_number('newest_simulated.price') }} as actual_price,
        observations.month,
        observations.observed_on,
        newest_simulated._loaded_at as landed_at
    from newest_simulated
    inner join observations on newest_simulated.observation_id = observations.observation_id
    where newest_simulated.place = 1 and observations.price is null
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

real as (
    select
        priced.observation_id,
        priced.price as actual_price,
        priced.is_price_valid,
        priced.source,
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
),

final as (
    select
        observation_id,
        actual_price,
        is_price_valid,
        source,
        price_decile,
        month,
        observed_on,
        landed_at
    from real
    union all
    select
        observation_id,
        actual_price,
        -- nobody paid it: it is no label and no evidence
        false as is_price_valid,
        'simulated' as source,
        cast(null as integer) as price_decile,
        month,
        observed_on,
        landed_at
    from simulated
)

select * from final
