{{ config(materialized='view') }}

-- A scored row's price range: prediction times and divided by exp(scale x quantile), so that ranges of several levels
-- never cross. A view: storing it anew each month took six times as long as reading it.
with traits as (
    select * from {{ ref('int_prediction_traits') }}
    where split <> 'eval'
),

calibration as (
    select * from {{ ref('interval_calibration') }}
),

quantiles as (
    select
        model_version,
        month,
        max(n) as n
        {%- for level in interval_levels() %},
        max(case when class = '{{ level.name }}' then factor end) as {{ level.column }}
        {%- endfor %}
    from calibration
    where trait = 'quantile'
    group by model_version, month
),

scaled as (
    select
        traits.*,
        quantiles.n as calibration_n,
        {%- for level in interval_levels() %}
        quantiles.{{ level.column }},
        {%- endfor %}
        (overall.factor + traits.imputation_error)
        {%- for trait in interval_traits() %}
        * coalesce(by_{{ trait }}.factor, {{ new_area().factor if trait == 'area' else 1 }})
        {%- endfor %} as scale
    from traits
    inner join quantiles on traits.model_version = quantiles.model_version and traits.month = quantiles.month
    inner join calibration as overall
        on
            traits.model_version = overall.model_version
            and traits.month = overall.month
            and overall.trait = 'overall'
    {%- for trait in interval_traits() %}
    left join calibration as by_{{ trait }}
        on
            traits.model_version = by_{{ trait }}.model_version
            and traits.month = by_{{ trait }}.month
            and by_{{ trait }}.trait = '{{ trait }}'
            and traits.{{ trait }} = by_{{ trait }}.class
    {%- endfor %}
),

ranged as (
    select
        *,
        100 * (exp(scale * q_std) - 1) as forecast_std_pct
    from scaled
),

grades as (
    select
        max(case when grade = 'A' then upper_forecast_std_pct end) as a,
        max(case when grade = 'B' then upper_forecast_std_pct end) as b,
        max(case when grade = 'C' then upper_forecast_std_pct end) as c
    from {{ ref('confidence_grades') }}
),

final as (
    select
        ranged.observation_id,
        ranged.model_version,
        ranged.split,
        ranged.month,
        ranged.area,
        ranged.predicted_price
        {%- for level in interval_levels() if level.name != 'std' %},
        ranged.predicted_price * exp(-ranged.scale * ranged.{{ level.column }}) as lower_{{ level.name }},
        ranged.predicted_price * exp(ranged.scale * ranged.{{ level.column }}) as upper_{{ level.name }}
        {%- endfor %},
        ranged.forecast_std_pct,
        case
            when ranged.forecast_std_pct <= grades.a then 'A'
            when ranged.forecast_std_pct <= grades.b then 'B'
            when ranged.forecast_std_pct <= grades.c then 'C'
            else 'D'
        end as grade,
        ranged.calibration_n
    from ranged
    cross join grades
)

select * from final
