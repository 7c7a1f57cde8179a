-- How often the price came within its range, against how often it should have. A group's gap is judged only as far as
-- it exceeds two standard errors, so that few rows prove nothing.
with intervals as (
    select * from {{ ref('prediction_intervals') }}
),

traits as (
    select * from {{ ref('int_prediction_traits') }}
    where actual_price is not null
),

limits as (
{{ limits_of(['coverage_excess_pct']) }}
),

matched as (
    select
        intervals.* exclude (split),
        {{ split_when_priced('intervals.split', 'traits.mode') }} as split,
        traits.actual_price,
        100 * abs(intervals.predicted_price / traits.actual_price - 1) as absolute_pct_error
    from intervals
    inner join traits
        on intervals.observation_id = traits.observation_id and intervals.model_version = traits.model_version
),

measured as (
    select
        model_version,
        split,
        month,
        area,
        grade,
        count(*) as n,
        {%- for level in interval_levels() if level.name != 'std' %}
        avg(
            case when actual_price between lower_{{ level.name }} and upper_{{ level.name }} then 100.0 else 0.0 end
        ) as coverage_{{ level.name }},
        {{ exact_mean('100 * (upper_' ~ level.name ~ ' - lower_' ~ level.name ~ ') / predicted_price') }}
            as width_{{ level.name }},
        {%- endfor %}
        {{ median_of('absolute_pct_error') }} as mdape_pct
    from matched
    -- sqlfluff does not parse grouping sets of several columns
    group by grouping sets ( -- noqa: PRS
        (model_version, split), (model_version, split, month), (model_version, split, area), (model_version, split, grade)
    )
),

grouped as (
    {%- for level in interval_levels() if level.name != 'std' %}
    select
        model_version,
        split,
        month,
        area,
        grade,
        n,
        {{ level.name }} as level_pct,
        coverage_{{ level.name }} as coverage_pct,
        width_{{ level.name }} as mean_width_pct,
        mdape_pct
    from measured
    {{ 'union all' if not loop.last }}
    {%- endfor %}
),

compared as (
    select
        *,
        case
            when month is not null then 'month'
            when area is not null then 'area'
            when grade is not null then 'grade'
            else 'all'
        end as segment_type,
        coalesce(cast(month as varchar), area, grade, 'all') as segment,
        greatest(
            abs(coverage_pct - level_pct) - 2 * sqrt(level_pct * (100.0 - level_pct) / n), 0
        ) as coverage_excess_pct
    from grouped
),

final as (
    select
        compared.model_version,
        compared.split,
        compared.segment_type,
        compared.segment,
        compared.level_pct,
        compared.n,
        compared.coverage_pct,
        compared.coverage_excess_pct,
        compared.mean_width_pct,
        compared.mdape_pct,
        {{- status_of('coverage_excess_pct') }} as status
    from compared
    cross join limits
)

select * from final
