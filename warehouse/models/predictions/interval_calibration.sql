{{ config(
    materialized='incremental', incremental_strategy='append', on_schema_change='fail',
    pre_hook="{{ forget_changed_series(ref('int_interval_windows')) }}",
) }}

-- Split conformal prediction with a local scale (Lei et al. 2018, Distribution-Free Predictive Inference for
-- Regression, section 5.2), from the errors that were known before each month.
{%- set shrinkage = 20 %}
with windows as (
    select * from {{ ref('int_interval_windows') }}
    where {{ is_new_series() }}
),

errors as (
    select * from {{ ref('int_prediction_traits') }}
    where {{ is_known_error() }}
),

known as (
    select
        windows.month as known_in,
        errors.*
    from errors
    inner join windows
        on
            errors.model_version = windows.model_version
            {%- if contract().observed_on %}
            and errors.month between windows.known_from and windows.known_through
            {%- endif %}
),

learned_areas as (
    select * from {{ source('training', 'learned_areas') }}
),

learned as (
    select
        windows.model_version,
        windows.month as known_in,
        learned_areas.area
    from windows
    inner join learned_areas on windows.model_version = learned_areas.model_version
    union all
    -- a version of an earlier release, which did not write them down, has met what it has errors of
    select distinct
        known.model_version,
        known.known_in,
        known.area
    from known
    anti join learned_areas on known.model_version = learned_areas.model_version
),

overall as (
    select
        model_version,
        known_in,
        count(*) as n,
        {{ exact_mean('log_error') }} as factor
    from known
    group by model_version, known_in
),

scaled_0 as (
    select
        known.*,
        overall.factor + known.imputation_error as scale
    from known
    inner join overall on known.model_version = overall.model_version and known.known_in = overall.known_in
),

{%- for trait in interval_traits() %}

-- errors of the class relative to what the classes before it let expect, drawn to what is usual where there are few
by_{{ trait }} as (
    {%- set weight, factor = shrinkage, 1 %}
    {%- if trait == 'area' %}
    {%- set weight = 'case when count(learned.area) = 0 then ' ~ new_area().weight ~ ' else ' ~ weight ~ ' end' %}
    {%- set factor = 'case when count(learned.area) = 0 then ' ~ new_area().factor ~ ' else ' ~ factor ~ ' end' %}
    {%- endif %}
    select
        scaled.model_version,
        scaled.known_in,
        scaled.{{ trait }} as class,
        count(*) as n,
        ({{ exact_mean('scaled.log_error / nullif(scaled.scale, 0)') }} * count(*) + {{ weight }} * {{ factor }})
        / (count(*) + {{ weight }}) as factor
    from scaled_{{ loop.index0 }} as scaled
    {%- if trait == 'area' %}
    left join learned
        on
            scaled.model_version = learned.model_version
            and scaled.known_in = learned.known_in
            and scaled.area = learned.area
    {%- endif %}
    group by scaled.model_version, scaled.known_in, scaled.{{ trait }}
),

scaled_{{ loop.index }} as (
    select
        before.* exclude (scale),
        before.scale * coalesce(by_{{ trait }}.factor, 1) as scale
    from scaled_{{ loop.index0 }} as before
    inner join by_{{ trait }}
        on
            before.model_version = by_{{ trait }}.model_version
            and before.known_in = by_{{ trait }}.known_in
            and before.{{ trait }} = by_{{ trait }}.class
),
{%- endfor %}

ranked as (
    select
        model_version,
        known_in,
        log_error / nullif(scale, 0) as score,
        row_number() over (partition by model_version, known_in order by log_error / nullif(scale, 0)) as score_rank,
        count(*) over (partition by model_version, known_in) as n
    from scaled_{{ interval_traits() | length }}
),

-- the smallest score that covers the share with one more row at hand
quantiles as (
    {%- for level in interval_levels() %}
    select
        model_version,
        known_in,
        '{{ level.name }}' as class,
        max(n) as n,
        min(case when score_rank >= ceil((n + 1) * {{ level.share }}) then score end) as factor
    from ranked
    group by model_version, known_in
    {{ 'union all' if not loop.last }}
    {%- endfor %}
),

together as (
    select
        model_version,
        known_in,
        'overall' as trait,
        'all' as class,
        n,
        factor
    from overall
    {%- for trait in interval_traits() %}
    union all
    select
        model_version,
        known_in,
        '{{ trait }}' as trait,
        class,
        n,
        factor
    from by_{{ trait }}
    {%- endfor %}
    union all
    -- an area that the version learned from and no error is known of is an average one
    select
        learned.model_version,
        learned.known_in,
        'area' as trait,
        learned.area as class,
        0 as n,
        1 as factor
    from learned
    anti join by_area
        on
            learned.model_version = by_area.model_version
            and learned.known_in = by_area.known_in
            and learned.area = by_area.class
    union all
    select
        model_version,
        known_in,
        'quantile' as trait,
        class,
        n,
        factor
    from quantiles
),

final as (
    select
        together.model_version,
        together.known_in as month,
        together.trait,
        together.class,
        together.n,
        together.factor,
        windows.fingerprint
    from together
    inner join windows on together.model_version = windows.model_version and together.known_in = windows.month
)

select * from final
