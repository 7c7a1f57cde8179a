{{ config(
    materialized='incremental', incremental_strategy='append', on_schema_change='fail',
    pre_hook="{{ forget_changed_series(served_months()) }}",
) }}

-- Error and level of each month that a champion served, with those before it where it has few prices, and intervals.
-- Those of medians come from order statistics (Conover 1999, Practical Nonparametric Statistics, section 3.2): ranks
-- n/2 -+ 0.98 sqrt(n) hold it 95 times in 100.
with months as (
    select * from {{ served_months() }} as months
    where {{ is_new_series() }}
),

predictions as (
    select * from {{ ref('int_prediction_traits') }}
    where role = 'champion' and mode = 'batch' and actual_price is not null
),

errors as (
    select
        months.model_version,
        months.month,
        predictions.predicted_price / predictions.actual_price as ratio,
        100 * abs(predictions.predicted_price / predictions.actual_price - 1) as absolute_pct_error
    from predictions
    inner join months
        on
            predictions.model_version = months.model_version
            and predictions.month between months.judged_from and months.month
),

ranked as (
    select
        *,
        row_number() over (partition by model_version, month order by ratio) as ratio_rank,
        row_number() over (partition by model_version, month order by absolute_pct_error) as error_rank,
        count(*) over (partition by model_version, month) as n
    from errors
),

bounded as (
    select
        *,
        greatest(1, floor(n / 2.0 - 0.98 * sqrt(n))) as lower_rank,
        least(n, ceil(n / 2.0 + 1 + 0.98 * sqrt(n))) as upper_rank
    from ranked
),

measured as (
    select
        model_version,
        month,
        count(*) as n,
        {{ median_of('absolute_pct_error') }} as mdape_pct,
        max(case when error_rank = lower_rank then absolute_pct_error end) as mdape_lower_pct,
        max(case when error_rank = upper_rank then absolute_pct_error end) as mdape_upper_pct,
        {{ median_of('ratio') }} as median_ratio,
        max(case when ratio_rank = lower_rank then ratio end) as median_ratio_lower,
        max(case when ratio_rank = upper_rank then ratio end) as median_ratio_upper
    from bounded
    group by model_version, month
),

final as (
    select
        months.model_version,
        months.month,
        months.judged_from,
        months.n_served,
        coalesce(measured.n, 0) as n,
        measured.mdape_pct,
        measured.mdape_lower_pct,
        measured.mdape_upper_pct,
        measured.median_ratio,
        measured.median_ratio_lower,
        measured.median_ratio_upper,
        months.fingerprint
    from months
    left join measured on months.model_version = measured.model_version and months.month = measured.month
)

select * from final
