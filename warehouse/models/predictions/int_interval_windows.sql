{{ config(materialized='table') }}

-- From which errors the intervals of each scored month are made, with a fingerprint of them. Too few give none: the
-- widest interval would promise more than its largest error can tell.
{%- set window_months = 12 %}
with traits as (
    select * from {{ ref('int_prediction_traits') }}
),

scored as (
    select
        model_version,
        month
    from traits
    where split <> 'eval'
    group by model_version, month
),

known as (
    select
        model_version,
        {{ 'month' if contract().observed_on else add_months('month', -1) }} as month,
        count(*) as n,
        {{ content_fingerprint([
            'observation_id', 'imputation_error', 'history', 'surprise', 'rarity', 'area', 'log_error',
        ]) }} as fingerprint
    from traits
    where {{ is_known_error() }}
    group by model_version, month
),

latest as (
    -- a month without prices of its own before it uses the latest there are
    select
        scored.model_version,
        scored.month,
        {{ add_months('max(known.month)', 1 - window_months) }} as known_from,
        max(known.month) as known_through
    from scored
    inner join known on scored.model_version = known.model_version and scored.month > known.month
    group by scored.model_version, scored.month
),

final as (
    select
        latest.model_version,
        latest.month,
        latest.known_from,
        latest.known_through,
        concat_ws(
            ' ', latest.model_version, latest.month, {{ joined_text('known.fingerprint', 'known.month') }}
        ) as fingerprint
    from latest
    inner join known
        on
            latest.model_version = known.model_version
            and known.month between latest.known_from and latest.known_through
    group by latest.model_version, latest.month, latest.known_from, latest.known_through
    having sum(known.n) >= {{ interval_least_n() }}
)

select * from final
