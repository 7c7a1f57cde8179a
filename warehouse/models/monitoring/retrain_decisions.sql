-- May and should the champion be trained again? One verdict for each month that it served, from what was known then.
-- Evidence is an error or a level that is worse beyond doubt, or drift once many prices are new; drift alone warns.
{%- set rules = retraining_rules() %}
with served as (
    select
        *,
        model_version || ' ' || substr(cast(month as varchar), 1, 7) as decision_id
    from {{ ref('served_months') }}
),

model_versions as (
    select
        versions.model_version,
        -- who loses the comparison of this build is rejected right behind it
        case when lost.challenger is not null then 'rejected' else versions.status end as status,
        versions.trained_through,
        versions.n_train + versions.n_eval as n_labels,
        cast({{ regex_group('versions.model_version', '^v([0-9]+)$', 1) }} as integer) as number
    from {{ source('training', 'model_versions') }} as versions
    left join {{ ref('challenger_comparisons') }} as lost
        on versions.model_version = lost.challenger and lost.verdict = 'reject'
),

drift as (
    select * from {{ ref('drift_by_month') }}
),

limits as (
{{ limits_of(['new_labels_pct']) }}
),

labels as (
    select
        month,
        count(*) as n
    from {{ ref('features') }}
    where is_price_valid
    group by month
),

attempts as (
    select
        decision_id,
        sum(case when finished_at is null then 1 else 0 end) as died,
        sum(case when finished_at is not null then 1 else 0 end) as finished
    from {{ source('training', 'retrain_attempts') }}
    group by decision_id
),

-- the newest training that a month could know of, whatever became of it
trainings as (
    select
        served.model_version,
        served.month,
        max(trained.trained_through) as last_trained_through,
        -- of later months only: a version is also trained when rows of the same ones were corrected
        sum(
            case
                when
                    trained.status = 'rejected'
                    and trained.number > own.number
                    and trained.trained_through > own.trained_through
                    then 1
                else 0
            end
        ) as rejected_since
    from served
    inner join model_versions as own on served.model_version = own.model_version
    inner join model_versions as trained on served.month > trained.trained_through
    group by served.model_version, served.month
),

-- by month that was trained through
learned as (
    select
        trained_through,
        max(n_labels) as n_labels
    from model_versions
    group by trained_through
),

known as (
    select
        served.model_version,
        served.month,
        sum(labels.n) as new_labels
    from served
    inner join trainings on served.model_version = trainings.model_version and served.month = trainings.month
    inner join labels on trainings.last_trained_through < labels.month and served.month >= labels.month
    group by served.model_version, served.month
),

gathered as (
    select
        served.decision_id,
        served.model_version,
        served.month,
        served.n,
        served.mdape_pct,
        served.reference_mdape_pct,
        served.error_increase_pct,
        served.median_ratio,
        served.level_error_pct,
        served.status as served_status,
        served.error_status = 'fail' as is_error_worse,
        served.level_status = 'fail' as is_level_off,
        coalesce(drift.status, 'insufficient_data') as drift_status,
        drift.drifted_share_pct,
        trainings.last_trained_through,
        trainings.rejected_since,
        {{ months_between('trainings.last_trained_through', 'served.month') }} as months_since_training,
        coalesce(known.new_labels, 0) as new_labels,
        100.0 * coalesce(known.new_labels, 0) / learned.n_labels as new_labels_pct,
        served.trained_through,
        coalesce(attempts.died, 0) as died_attempts,
        coalesce(attempts.finished, 0) as finished_attempts
    from served
    inner join trainings on served.model_version = trainings.model_version and served.month = trainings.month
    inner join learned on trainings.last_trained_through = learned.trained_through
    left join known on served.model_version = known.model_version and served.month = known.month
    left join drift on served.model_version = drift.model_version and served.month = drift.month
    left join attempts on served.decision_id = attempts.decision_id
),

drifting as (
    select
        gathered.*,
        gathered.drift_status in ('warn', 'fail') as is_drifting,
        gathered.drift_status in ('warn', 'fail')
        and gathered.new_labels_pct > limits.new_labels_pct_fail_upper as is_drift_learnable,
        gathered.finished_attempts = 0 and gathered.died_attempts >= {{ rules.max_attempts }} as has_died
    from gathered
    cross join limits
),

weighed as (
    select
        *,
        is_error_worse or is_level_off or is_drift_learnable as has_evidence
    from drifting
),

-- a version trained because its predecessor went wrong, and wrong in every month since
persistence as (
    select
        now.model_version,
        now.month,
        coalesce(max(case when before.is_error_worse or before.is_level_off then 1 else 0 end) = 1, false)
        and count(distinct own.month) >= 2
        and count(distinct own.month)
        = count(distinct case when own.is_error_worse or own.is_level_off then own.month end) as does_persist
    from weighed as now
    inner join weighed as own on now.model_version = own.model_version and now.month >= own.month
    left join weighed as before
        on now.model_version <> before.model_version and now.trained_through = before.month
    group by now.model_version, now.month
),

decided as (
    select
        weighed.*,
        persistence.does_persist,
        case
            when weighed.served_status = 'insufficient_data' then 'insufficient_data'
            when not weighed.has_evidence then 'hold'
            when weighed.has_died or weighed.rejected_since >= 2 then 'needs_human'
            when weighed.months_since_training < {{ rules.cooldown_months }}
                then case when persistence.does_persist then 'needs_human' else 'cooldown' end
            when weighed.new_labels < {{ rules.min_new_labels }} then 'insufficient_data'
            else 'retrain'
        end as decision
    from weighed
    inner join persistence on weighed.model_version = persistence.model_version and weighed.month = persistence.month
),

final as (
    select
        decision_id,
        model_version,
        month,
        decision,
        {{ labels_of([
            {'when': 'is_error_worse', 'label': 'error'},
            {'when': 'is_level_off', 'label': 'level'},
            {'when': 'is_drift_learnable', 'label': 'drift_with_new_labels'},
            {'when': 'is_drifting and not is_drift_learnable', 'label': 'drift'},
            {'when': "decision = 'needs_human' and has_died", 'label': 'trainings_died'},
            {'when': "decision = 'needs_human' and rejected_since >= 2", 'label': 'challengers_rejected'},
            {'when': "decision = 'needs_human' and does_persist", 'label': 'persists_after_retrain'},
            {'when': "decision = 'cooldown'", 'label': 'cooldown'},
            {'when': "served_status = 'insufficient_data'", 'label': 'too_few_prices'},
            {'when': "decision = 'insufficient_data' and served_status <> 'insufficient_data'", 'label': 'too_few_new_labels'},
        ]) }} as reasons,
        n,
        mdape_pct,
        reference_mdape_pct,
        error_increase_pct,
        median_ratio,
        level_error_pct,
        drift_status,
        drifted_share_pct,
        cast(new_labels as bigint) as new_labels,
        new_labels_pct,
        cast(months_since_training as integer) as months_since_training,
        last_trained_through,
        cast(rejected_since as integer) as rejected_challengers,
        cast(died_attempts as integer) as died_attempts,
        finished_attempts > 0 as is_done
    from decided
)

select * from final
