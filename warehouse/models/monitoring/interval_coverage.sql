-- How often the price came within its range, against how often it should have. A group's gap is judged only as far as
-- it exceeds two standard errors, so that few rows prove nothing.
with intervals as (
    select * from {{ ref('prediction_intervals') }}
),

actuals as (
    select * from {{ ref('actuals') }}
    where is_price_valid and actual_price > 0
),

limits as (
{{ limits_of(['coverage_excess_pct']) }}
),

matched as (
    select
        intervals.*,
        actuals.actual_price
    from intervals
    inner join actuals on intervals.observation_id = actuals.observation_id
),

leveled as (
    {%- for level in interval_levels() if level.name != 'std' %}
    select
        model_version,
        split,
        month,
        area,
        grade,
        {{ level.name }} as level_pct,
        case
            when actual_price between lower_{{ level.name }} and upper_{{ level.name }} then 100.0
            else 0.0
        end as covered,
        100 * (upper_{{ level.name }} - lower_{{ level.name }}) / predicted_price as width_pct,
        100 * abs(predicted_price / actual_price - 1) as absolute_pct_error
    from matched
    {{ 'union all' if not loop.last }}
    {%- endfor %}
),

grouped as (
    select
        model_version,
        split,
        level_pct,
        month,
        area,
        grade,
        count(*) as n,
        avg(covered) as coverage_pct,
        avg(width_pct) as mean_width_pct,
        {{ median_of('absolute_pct_error') }} as mdape_pct
    from leveled
    -- sqlfluff does not parse grouping sets of several columns
    group by grouping sets ( -- noqa: PRS
        (model_version, split, level_pct), (model_version, split, level_pct, month),
        (model_version, split, level_pct, area), (model_version, split, level_pct, grade)
    )
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
