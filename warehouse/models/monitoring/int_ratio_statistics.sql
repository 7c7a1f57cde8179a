{{ config(
    materialized='incremental', incremental_strategy='append', on_schema_change='append_new_columns',
    pre_hook="{{ forget_changed_series(ref('int_error_groups')) }}",
) }}

-- What the ratio study adds up: of models, on valid sales as the IAAO standard wants, and once on all priced rows of
-- the whole split; of baselines, on the valid sales of the whole split. n and medians are those of int_error_groups.
{%- set same_segment = {
    'all': 'true', 'area': "coalesce(matched.area, 'unknown') = studied.area", 'month': 'matched.month = studied.month',
    'price_decile': 'matched.price_decile = studied.price_decile',
} %}
with studied as (
    select
        *,
        row_number() over (order by split, model_version, population, segment_type, segment) as group_id
    from {{ ref('int_error_groups') }}
    where
        (population = 'valid' or segment_type = 'all')
        and population <> 'simulated'
        and (kind = 'model' or (population = 'valid' and segment_type = 'all'))
        and {{ is_new_series() }}
),

matched as (
    select
        priced.*,
        -- once a row, not once a group: it costs as much as all the rest of this step
        {{ bootstrap_part('priced.observation_id') }} as part
    from {{ ref('int_monitored') }} as priced
    semi join studied on priced.split = studied.split and priced.model_version = studied.model_version
    where not priced.is_simulated
),

members as (
    {%- for segment_type, condition in same_segment.items() %}
    select
        studied.group_id,
        matched.part,
        matched.actual_price,
        matched.predicted_price
    from matched
    inner join studied on matched.split = studied.split and matched.model_version = studied.model_version
    where
        studied.segment_type = '{{ segment_type }}'
        and {{ condition }}
        and (matched.is_price_valid or studied.population = 'all')
    {{- '\n\n    union all\n' if not loop.last }}
    {%- endfor %}
),

ranked as (
    -- equal prices share their mean rank, so that the order of rows does not matter
    select
        *,
        (rank() over by_price + count(*) over by_price) / 2.0 as price_rank
    from members
    window by_price as (partition by group_id order by actual_price)
),

compared as (
    select
        ranked.*,
        ranked.predicted_price / ranked.actual_price as ratio,
        ranked.predicted_price / ranked.actual_price / studied.median_ratio - 1 as deviation,
        -- the PRB's proxy of value, in doublings: half price, half prediction at the group's level
        ln((ranked.predicted_price / studied.median_ratio + ranked.actual_price) / 2) / ln(2) as doublings
    from ranked
    inner join studied on ranked.group_id = studied.group_id
),

statistics as (
    select
        group_id,
        {{ ratio_metrics() }}
    from compared
    group by group_id
),

-- Bootstrap of the random parts that a hash makes of the rows (Poisson weights, Hanley and MacGibbon 2006, Creating
-- non-parametric bootstrap samples using Poisson frequencies): the cost of one pass whatever the number of samples.
-- The median stays that of all rows.
part_sums as (
    select
        group_id,
        coalesce(part, 0) as part,
        count(*) as n,
        sum(ratio) as ratio,
        sum(abs(deviation)) as deviation,
        sum(predicted_price) as predicted_price,
        sum(actual_price) as actual_price
    from compared
    group by group_id, coalesce(part, 0)
),

part_weights as (
{{ bootstrap_weights() }}
),

samples as (
    select
        part_sums.group_id,
        part_weights.sample,
        100 * sum(part_weights.weight * part_sums.deviation) / nullif(sum(part_weights.weight * part_sums.n), 0) as cod,
        (sum(part_weights.weight * part_sums.ratio) / nullif(sum(part_weights.weight * part_sums.n), 0))
        / nullif(
            sum(part_weights.weight * part_sums.predicted_price)
            / nullif(sum(part_weights.weight * part_sums.actual_price), 0), 0
        ) as prd
    from part_sums
    inner join part_weights on part_sums.part = part_weights.part
    group by part_sums.group_id, part_weights.sample
),

bounds as (
    select
        group_id,
        {{ quantiles_of('cod', [0.025, 0.975]) }} as cod,
        {{ quantiles_of('prd', [0.025, 0.975]) }} as prd
    from samples
    group by group_id
),

final as (
    select
        {{ qualified('studied', ['split', 'model_version', 'population', 'segment_type', 'segment']) }},
        {{ qualified('studied', ['n', 'median_ratio']) }},
        {{ qualified('statistics', ratio_metric_names()) }},
        {{ list_item('bounds.cod', 1) }} as cod_lower,
        {{ list_item('bounds.cod', 2) }} as cod_upper,
        {{ list_item('bounds.prd', 1) }} as prd_lower,
        {{ list_item('bounds.prd', 2) }} as prd_upper,
        studied.fingerprint
    from studied
    inner join statistics on studied.group_id = statistics.group_id
    left join bounds on studied.group_id = bounds.group_id
)

select * from final
