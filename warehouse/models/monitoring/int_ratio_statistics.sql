{{ config(
    materialized='incremental', incremental_strategy='append', on_schema_change='append_new_columns',
    pre_hook="{{ forget_changed_series(ref('int_error_groups')) }}",
) }}

-- Statistics of the ratio study, without verdicts: of models, on valid sales as the IAAO standard wants, and once on
-- all priced rows of the whole split. n and medians are those of int_error_groups.
with studied as (
    select *, row_number() over (order by split, model_version, population, segment_type, segment) as group_id
    from {{ ref('int_error_groups') }}
    where kind = 'model' and (population = 'valid' or segment_type = 'all') and {{ is_new_series() }}
),

series as (
    select distinct split, model_version from studied
),

matched as (
    select
        split, model_version, coalesce(area, 'unknown') as area, month, price_decile,
        is_price_valid, actual_price, predicted_price
    from {{ ref('predictions_matched') }}
    inner join series using (split, model_version)
    where ratio is not null
),

members as (
    {%- for segment_type in ['all', 'area', 'month', 'price_decile'] %}
    select studied.group_id, matched.actual_price, matched.predicted_price
    from matched
    inner join studied
        on matched.split = studied.split and matched.model_version = studied.model_version
        {{ '' if segment_type == 'all' else 'and matched.' ~ segment_type ~ ' = studied.' ~ segment_type }}
        and (matched.is_price_valid or studied.population = 'all')
    where studied.segment_type = '{{ segment_type }}'
    {{- '\n\n    union all\n' if not loop.last }}
    {%- endfor %}
),

ranked as (
    -- equal prices share their mean rank, so that the order of rows does not matter
    select *, (rank() over by_price + count(*) over by_price) / 2.0 as price_rank
    from members
    window by_price as (partition by group_id order by actual_price)
),

compared as (
    select
        ranked.*,
        predicted_price / actual_price as ratio,
        predicted_price / actual_price / median_ratio - 1 as deviation,
        -- the PRB's proxy of value, in doublings: half price, half prediction at the group's level
        ln((predicted_price / median_ratio + actual_price) / 2) / ln(2) as doublings
    from ranked
    inner join studied on ranked.group_id = studied.group_id
),

statistics as (
    select
        group_id,
        avg(ratio) as mean_ratio,
        sum(predicted_price) / sum(actual_price) as weighted_mean_ratio,
        100 * avg(abs(deviation)) as cod,
        covar_pop(deviation, doublings) / nullif(var_pop(doublings), 0) as prb,
        var_pop(deviation) as deviation_variance,
        var_pop(doublings) as doublings_variance,
        {{ gini('predicted_price') }} as predicted_gini,
        case when max(actual_price) > min(actual_price) then {{ gini('actual_price') }} end as actual_gini
    from compared
    group by group_id
),

final as (
    select
        split, model_version, population, segment_type, segment,
        n, median_ratio, mean_ratio, weighted_mean_ratio, cod,
        mean_ratio / weighted_mean_ratio as prd,
        prb,
        sqrt(
            greatest(deviation_variance - prb * prb * doublings_variance, 0)
            / nullif((n - 2) * doublings_variance, 0)
        ) as prb_se,
        predicted_gini / actual_gini as mki,
        fingerprint
    from studied
    inner join statistics on studied.group_id = statistics.group_id
)

select * from final
