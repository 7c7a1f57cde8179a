{{ config(
    materialized='incremental', incremental_strategy='append', on_schema_change='append_new_columns',
    pre_hook="{{ forget_changed_series(ref('int_series')) }}",
) }}

-- Error metrics of every group that monitoring looks at, in one pass: medians are dear, and all tables share them.
with matched as (
    select * from {{ ref('int_monitored') }}
),

series as (
    select
        *,
        cast(row_number() over (order by split, model_version) as integer) as series_id
    from {{ ref('int_series') }}
    where {{ is_new_series() }}
),

members as (
    select
        series.series_id,
        coalesce(matched.area, 'unknown') as area,
        matched.month,
        matched.price_decile,
        matched.is_price_valid,
        matched.is_simulated,
        matched.actual_price,
        matched.ratio,
        abs(matched.error) as absolute_error,
        abs(matched.pct_error) as absolute_pct_error
    from matched
    inner join series on matched.split = series.split and matched.model_version = series.model_version
),

populations as (
    select
        *,
        case when is_simulated then 'simulated' else 'all' end as population
    from members
    union all
    select
        *,
        'valid' as population
    from members
    where is_price_valid
),

grouped as (
    select
        series_id,
        population,
        area,
        month,
        price_decile,
        {{ error_metrics() }}
    from populations
    -- sqlfluff does not parse grouping sets of several columns
    group by grouping sets ( -- noqa: PRS
        (series_id, population), (series_id, population, area),
        (series_id, population, month), (series_id, population, price_decile)
    )
    -- a simulated price is in no class
    having price_decile is not null or grouping(price_decile) = 1
),

final as (
    select
        series.split,
        series.model_version,
        series.kind,
        grouped.population,
        case
            when grouped.area is not null then 'area'
            when grouped.month is not null then 'month'
            when grouped.price_decile is not null then 'price_decile'
            else 'all'
        end as segment_type,
        coalesce(grouped.area, cast(grouped.month as varchar), cast(grouped.price_decile as varchar), 'all') as segment,
        {{ qualified('grouped', ['area', 'month', 'price_decile'] + error_metric_names()) }},
        series.fingerprint
    from grouped
    inner join series on grouped.series_id = series.series_id
)

select * from final
