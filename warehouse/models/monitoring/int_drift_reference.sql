{{ config(materialized='incremental', incremental_strategy='append', on_schema_change='fail') }}

-- What distances from a profile are measured in, and what their chance level depends on.
with profile as (
    {%- for relation in [ref('training_profile'), ref('prediction_profile')] %}
    select * from {{ relation }}
    where {{ is_new_version() }}
    {{ 'union all' if not loop.last }}
    {%- endfor %}
),

counted as (
    select
        model_version,
        feature,
        sum(case when point > 0 then n else 0 end) as n,
        sum(case when point = 0 then n else 0 end) as n_missing,
        sum(case when point > 0 and n = 1 then 1 else 0 end) as n_singletons,
        -- few values, all of them whole numbers; few fractions are those of a few months
        max(point) <= {{ category_limit() }} and coalesce(max(abs(value - floor(value))), 1) = 0 as is_category,
        sum(n * value) / nullif(sum(case when point > 0 then n end), 0) as mean
    from profile
    group by model_version, feature
),

walked as (
    select
        profile.model_version,
        profile.feature,
        profile.value,
        cast(profile.n as double) / counted.n as share,
        profile.value - counted.mean as deviation,
        sum(profile.n) over by_value / counted.n as through,
        lead(profile.value) over by_value - profile.value as gap
    from profile
    inner join counted on profile.model_version = counted.model_version and profile.feature = counted.feature
    where profile.point > 0
    window by_value as (
        partition by profile.model_version, profile.feature
        order by profile.value
        rows between unbounded preceding and current row
    )
),

spread as (
    select
        model_version,
        feature,
        sqrt(sum(share * deviation * deviation)) as std,
        max(value) - min(value) as value_range,
        -- the mean Wasserstein distance of n rows from their own distribution is at most this / sqrt(n)
        sum(sqrt(greatest(through * (1 - through), 0)) * gap) as roughness
    from walked
    group by model_version, feature
),

final as (
    select
        counted.model_version,
        counted.feature,
        cast(counted.n as bigint) as n,
        cast(counted.n_missing as bigint) as n_missing,
        cast(counted.n_singletons as bigint) as n_singletons,
        counted.is_category,
        counted.mean,
        spread.std,
        spread.value_range,
        coalesce(spread.roughness, 0) as roughness
    from counted
    left join spread on counted.model_version = spread.model_version and counted.feature = spread.feature
)

select * from final
