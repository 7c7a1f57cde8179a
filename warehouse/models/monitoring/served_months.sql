-- Each month that a champion served: error and level, and how far beyond doubt they are worse than when the version was
-- evaluated.
with months as (
    select * from {{ ref('int_served_months') }}
),

model_versions as (
    select * from {{ source('training', 'model_versions') }}
),

limits as (
{{ limits_of(['error_increase_pct', 'level_error_pct']) }}
),

compared as (
    select
        months.model_version,
        months.month,
        months.judged_from,
        months.n_served,
        months.n,
        months.mdape_pct,
        months.mdape_lower_pct,
        months.mdape_upper_pct,
        months.median_ratio,
        months.median_ratio_lower,
        months.median_ratio_upper,
        model_versions.trained_through,
        model_versions.eval_mdape_pct as reference_mdape_pct,
        -- the interval's end nearest to no change: what is beyond doubt; nothing is known before prices are
        case
            when months.n > 0
                then greatest(100 * (months.mdape_lower_pct / nullif(model_versions.eval_mdape_pct, 0) - 1), 0)
        end as error_increase_pct,
        case
            when months.n > 0
                then 100 * greatest(months.median_ratio_lower - 1, 1 - months.median_ratio_upper, 0)
        end as level_error_pct
    from months
    inner join model_versions on months.model_version = model_versions.model_version
),

judged as (
    select
        compared.*,
        {{- status_of('error_increase_pct') }} as error_status,
        {{- status_of('level_error_pct') }} as level_status
    from compared
    cross join limits
),

final as (
    select
        *,
        {{- worst_status(['error_status', 'level_status']) }} as status
    from judged
)

select * from final
