-- Is the challenger measurably better than the champion? Paired errors on the newest months that both priced without
-- having learned from them: months scored in the shadow where there are enough rows, else the challenger's evaluation
-- window (by the model that had not seen it). The interval is a bootstrap of hash parts. Errors of one area and month
-- rise and fall together, so they are drawn together; where there are too few such groups (Cameron, Gelbach and Miller
-- 2008, Bootstrap-based improvements for inference with clustered errors, call 5 to 30 few), rows are.
{%- set rules = promotion_rules() %}
{%- set min_groups = 30 %}
with model_versions as (
    select * from {{ source('training', 'model_versions') }}
),

pair as (
    select
        challenger.model_version as challenger,
        champion.model_version as champion,
        coalesce(challenger.trained_through >= champion.trained_through, true) as knows_as_much
    from model_versions as challenger
    cross join model_versions as champion
    where challenger.status = 'challenger' and champion.status = 'champion'
),

canary as (
    select
        decided.challenger,
        decided.champion,
        max(decided.month) as month
    from {{ source('training', 'promotion_decisions') }} as decided
    where decided.verdict = 'canary'
    group by decided.challenger, decided.champion
),

predictions as (
    select * from {{ ref('int_prediction_traits') }}
    where mode = 'batch' and actual_price is not null
),

paired as (
    select
        pair.challenger,
        pair.champion,
        theirs.observation_id,
        theirs.month,
        theirs.area,
        case when theirs.split = 'eval' then 'eval' else 'shadow' end as stage,
        100 * abs(theirs.predicted_price / theirs.actual_price - 1) as challenger_error,
        100 * abs(ours.predicted_price / ours.actual_price - 1) as champion_error
    from pair
    inner join predictions as theirs on pair.challenger = theirs.model_version
    inner join predictions as ours
        on pair.champion = ours.model_version and theirs.observation_id = ours.observation_id
    -- what a champion said of its own evaluation window is by a model that knew less than the one that serves: it is
    -- compared with what the challenger said of its own, unless that one was given fewer months to learn from
    where ours.split <> 'eval' or (theirs.split = 'eval' and pair.knows_as_much)
),

newest as (
    select
        challenger,
        champion,
        stage,
        max(month) as month
    from paired
    group by challenger, champion, stage
),

-- months in the shadow must not push the evaluation window out while they are too few to be compared themselves
recent as (
    select paired.*
    from paired
    inner join newest
        on
            paired.challenger = newest.challenger
            and paired.champion = newest.champion
            and paired.stage = newest.stage
            and paired.month > {{ add_months('newest.month', -rules.window_months) }}
),

in_shadow as (
    select
        challenger,
        champion,
        count(*) as n
    from recent
    where stage = 'shadow'
    group by challenger, champion
),

evidence as (
    select
        pair.challenger,
        pair.champion,
        case when max(in_shadow.n) >= {{ rules.min_rows }} then 'shadow' else 'eval' end as stage,
        max(paired.month) as month,
        count(distinct case when paired.stage = 'shadow' then paired.month end) as shadow_months,
        count(distinct case when paired.stage = 'shadow' and paired.month > canary.month then paired.month end)
            as canary_months,
        max(canary.month) as canary_from
    from pair
    left join paired on pair.challenger = paired.challenger and pair.champion = paired.champion
    left join in_shadow on pair.challenger = in_shadow.challenger and pair.champion = in_shadow.champion
    left join canary on pair.challenger = canary.challenger and pair.champion = canary.champion
    group by pair.challenger, pair.champion
),

compared as (
    select recent.*
    from recent
    inner join evidence
        on
            recent.challenger = evidence.challenger
            and recent.champion = evidence.champion
            and recent.stage = evidence.stage
),

overall as (
    select
        challenger,
        champion,
        count(*) as n,
        {{ exact_mean('challenger_error') }} as challenger_mape_pct,
        {{ exact_mean('champion_error') }} as champion_mape_pct,
        100 * (
            1 - {{ exact_mean('challenger_error') }} / nullif({{ exact_mean('champion_error') }}, 0)
        ) as error_reduction_pct
    from compared
    group by challenger, champion
),

grouped as (
    select
        challenger,
        champion,
        count(distinct concat_ws(' ', month, area)) as n
    from compared
    group by challenger, champion
),

parted as (
    select
        compared.*,
        case
            when grouped.n < {{ min_groups }} then {{ bootstrap_part('compared.observation_id') }}
            else {{ bootstrap_part("concat_ws(' ', compared.month, compared.area)") }}
        end as part
    from compared
    inner join grouped on compared.challenger = grouped.challenger and compared.champion = grouped.champion
),

part_sums as (
    select
        challenger,
        champion,
        part,
        {{ exact_mean('challenger_error') }} * count(*) as challenger_error,
        {{ exact_mean('champion_error') }} * count(*) as champion_error
    from parted
    group by challenger, champion, part
),

part_weights as (
{{ bootstrap_weights() }}
),

samples as (
    select
        part_sums.challenger,
        part_sums.champion,
        part_weights.sample,
        100 * (
            1 - sum(part_weights.weight * part_sums.challenger_error)
            / nullif(sum(part_weights.weight * part_sums.champion_error), 0)
        ) as error_reduction_pct
    from part_sums
    inner join part_weights on part_sums.part = part_weights.part
    group by part_sums.challenger, part_sums.champion, part_weights.sample
),

bounds as (
    select
        challenger,
        champion,
        {{ quantiles_of('error_reduction_pct', [0.025, 0.975]) }} as bounds
    from samples
    group by challenger, champion
),

-- an area gets worse when the difference is beyond three standard errors: two would find one such area in some thirty
-- that are all the same
areas as (
    select
        challenger,
        champion,
        area,
        100 * ({{ exact_mean('challenger_error') }} / nullif({{ exact_mean('champion_error') }}, 0) - 1) as loss_pct
    from compared
    group by challenger, champion, area
    having
        count(*) >= 30
        and avg(challenger_error - champion_error) > 3 * stddev_samp(challenger_error - champion_error) / sqrt(count(*))
),

ranked_areas as (
    select
        *,
        row_number() over (partition by challenger, champion order by loss_pct desc, area asc) as place
    from areas
),

joined as (
    select
        evidence.challenger,
        evidence.champion,
        evidence.month,
        evidence.stage,
        evidence.shadow_months,
        evidence.canary_months,
        evidence.canary_from,
        coalesce(overall.n, 0) as n,
        overall.challenger_mape_pct,
        overall.champion_mape_pct,
        overall.error_reduction_pct,
        {{ list_item('bounds.bounds', 1) }} as reduction_lower_pct,
        {{ list_item('bounds.bounds', 2) }} as reduction_upper_pct,
        worst.area as worst_area,
        worst.loss_pct as worst_area_loss_pct
    from evidence
    left join overall on evidence.challenger = overall.challenger and evidence.champion = overall.champion
    left join bounds on evidence.challenger = bounds.challenger and evidence.champion = bounds.champion
    left join ranked_areas as worst
        on evidence.challenger = worst.challenger and evidence.champion = worst.champion and worst.place = 1
),

weighed as (
    select
        *,
        coalesce(
            n >= {{ rules.min_rows }}
            and reduction_lower_pct > 0
            and error_reduction_pct >= {{ rules.margin_pct }}
            and coalesce(worst_area_loss_pct, 0) <= {{ rules.max_segment_loss_pct }}, false
        ) as is_better
    from joined
),

decided as (
    select
        *,
        case
            when n < {{ rules.min_rows }} then 'wait'
            {%- if rules.mode == 'canary' %}
            when canary_from is not null and canary_months < {{ rules.canary_months }} then 'wait'
            when canary_from is null and is_better then 'canary'
            {%- endif %}
            when is_better then 'promote'
            {%- if rules.mode == 'canary' %}
            when canary_from is not null then 'reject'
            {%- endif %}
            {%- if contract().observed_on %}
            when stage = 'eval' then 'wait'
            when reduction_upper_pct < {{ rules.margin_pct }} then 'reject'
            when shadow_months >= {{ rules.shadow_months }} then 'reject'
            else 'wait'
            {%- else %}
            else 'reject'
            {%- endif %}
        end as verdict
    from weighed
),

final as (
    select
        *,
        case
            when n < {{ rules.min_rows }}
                then n || ' rows that both priced have a known price, {{ rules.min_rows }} are needed'
            else
                'mean error of ' || challenger || ' is ' || {{ shown('abs(error_reduction_pct)') }}
                || case when error_reduction_pct < 0 then ' % higher' else ' % lower' end
                || ' than that of ' || champion
                || ' (95 % interval of what it is lower by ' || {{ shown('reduction_lower_pct') }} || ' to '
                || {{ shown('reduction_upper_pct') }} || ' %; {{ rules.margin_pct }} % and more than 0 is required) on '
                || n || ' rows of '
                || case when stage = 'shadow' then 'months scored in the shadow' else 'the evaluation window' end
                || case
                    when worst_area is not null
                        then '; worst in ' || worst_area || ', by ' || {{ shown('worst_area_loss_pct') }} || ' %'
                    else ''
                end
        end as reason
    from decided
)

select * from final
