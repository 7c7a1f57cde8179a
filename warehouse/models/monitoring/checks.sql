-- Every verdict on a month that a champion served: what was measured, its limits, how sure, since when.
{%- set judged = [
    {'check': 'mdape_pct', 'relation': 'served', 'value': 'mdape_pct'},
    {'check': 'error_increase_pct', 'relation': 'served', 'value': 'error_increase_pct'},
    {'check': 'median_ratio', 'relation': 'served', 'value': 'median_ratio'},
    {'check': 'level_error_pct', 'relation': 'served', 'value': 'level_error_pct'},
    {'check': 'cod', 'relation': 'ratios', 'value': 'cod'},
    {'check': 'prd', 'relation': 'ratios', 'value': 'prd'},
    {'check': 'prb', 'relation': 'ratios', 'value': 'prb'},
    {'check': 'interval_coverage_80', 'metric': 'coverage_excess_pct', 'relation': 'coverage', 'value': 'coverage_excess_pct'},
    {'check': 'unpriced_pct', 'relation': 'unpriced', 'value': 'unpriced_pct'},
] %}
{%- set drifted = ['feature', 'prediction', 'residual', 'target'] %}
with served as (
    select * from {{ ref('served_months') }}
),

ratios as (
    select
        model_version,
        cast(segment as date) as month,
        n,
        cod,
        prd,
        prb
    from {{ ref('ratio_study') }}
    where segment_type = 'month' and population = 'valid' and split = 'holdout'
),

coverage as (
    select
        model_version,
        cast(segment as date) as month,
        n,
        coverage_excess_pct
    from {{ ref('interval_coverage') }}
    where segment_type = 'month' and level_pct = 80 and split = 'holdout'
),

unpriced as (
    select
        model_version,
        month,
        count(*) as n,
        100.0 * sum(case when {{ is_positive('predicted_price') }} then 0 else 1 end) / count(*) as unpriced_pct
    from {{ source('predictions', 'predictions') }}
    where kind = 'model' and role = 'champion' and mode = 'batch'
    group by model_version, month
),

drift as (
    select * from {{ ref('drift_by_month') }}
),

estimates as (
    select * from {{ ref('error_estimates') }}
),

reconciled as (
    select
        count(*) as n,
        coalesce(sum(abs(difference)), 0) as unreconciled_rows,
        max(case when status = 'fail' then 'fail' else 'pass' end) as status
    from {{ ref('reconciliation') }}
),

newest as (
    select
        model_version,
        max(month) as month
    from served
    group by model_version
),

limits as (
    select
        metric,
        max(case when severity = 'warn' then lower_limit end) as warn_lower,
        max(case when severity = 'warn' then upper_limit end) as warn_upper,
        max(case when severity = 'fail' then lower_limit end) as fail_lower,
        max(case when severity = 'fail' then upper_limit end) as fail_upper
    from {{ ref('monitoring_thresholds') }}
    group by metric
),

least_n as (
    select max(lower_limit) as minimum_n
    from {{ ref('monitoring_thresholds') }}
    where metric = 'n'
),

measured as (
    {%- for c in judged %}
    select
        served.model_version,
        served.month,
        '{{ c.check }}' as check_name,
        '{{ c.metric | default(c.check) }}' as metric,
        measured.n,
        measured.{{ c.value }} as value
    from served
    inner join {{ c.relation }} as measured
        on served.model_version = measured.model_version and served.month = measured.month
    {{ 'union all' if not loop.last }}
    {%- endfor %}
),

compared as (
    select
        measured.*,
        {{ qualified('limits', ['warn_lower', 'warn_upper', 'fail_lower', 'fail_upper']) }},
        case
            when measured.n < least_n.minimum_n or measured.value is null then 'insufficient_data'
            when measured.value < limits.fail_lower or measured.value > limits.fail_upper then 'fail'
            when measured.value < limits.warn_lower or measured.value > limits.warn_upper then 'warn'
            else 'pass'
        end as status
    from measured
    inner join limits on measured.metric = limits.metric
    cross join least_n
),

judged as (
    select
        model_version,
        month,
        check_name,
        value,
        -- those that a failed value broke, else those that the next worse verdict begins at
        {%- for side in ['lower', 'upper'] %}
        case
            when status = 'fail' then coalesce(fail_{{ side }}, warn_{{ side }})
            else coalesce(warn_{{ side }}, fail_{{ side }})
        end as {{ side }}_limit,
        {%- endfor %}
        n,
        status
    from compared
),

together as (
    select * from judged
    {%- for what in drifted %}
    union all
    select
        served.model_version,
        served.month,
        '{{ what }}_drift' as check_name,
        drift.{{ 'drifted_share_pct' if what == 'feature' else what ~ '_excess' }} as value,
        cast(null as double) as lower_limit,
        {%- if what == 'feature' %}
        case when drift.feature_status = 'fail' then share.fail_upper else share.warn_upper end as upper_limit,
        {%- else %}
        1.0 as upper_limit,
        {%- endif %}
        drift.n,
        drift.{{ what }}_status as status
    from served
    inner join drift on served.model_version = drift.model_version and served.month = drift.month
    {%- if what == 'feature' %}
    left join limits as share on share.metric = 'drifted_share_pct'
    {%- endif %}
    {%- endfor %}
    union all
    select
        served.model_version,
        served.month,
        'estimated_mdape_pct' as check_name,
        estimates.estimated_mdape_pct as value,
        cast(null as double) as lower_limit,
        cast(null as double) as upper_limit,
        estimates.n,
        estimates.status
    from served
    inner join estimates on served.model_version = estimates.model_version and served.month = estimates.month
    union all
    -- of the warehouse as it stands, told with the newest month of each version
    select
        newest.model_version,
        newest.month,
        'unreconciled_rows' as check_name,
        reconciled.unreconciled_rows as value,
        cast(null as double) as lower_limit,
        0.0 as upper_limit,
        reconciled.n,
        reconciled.status
    from reconciled
    cross join newest
),

changes as (
    select
        *,
        case
            when lag(status) over (partition by model_version, check_name order by month) = status then 0
            else 1
        end as is_change
    from together
),

spells as (
    select
        *,
        sum(is_change) over (partition by model_version, check_name order by month) as spell
    from changes
),

final as (
    select
        spells.model_version,
        spells.month,
        spells.check_name,
        spells.value,
        spells.lower_limit,
        spells.upper_limit,
        spells.n,
        spells.status,
        named.severity,
        min(spells.month) over (
            partition by spells.model_version, spells.check_name, spells.spell
        ) as since
    from spells
    inner join {{ ref('monitoring_checks') }} as named on spells.check_name = named.check_name
)

select * from final
