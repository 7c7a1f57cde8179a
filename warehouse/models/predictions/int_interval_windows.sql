{{ config(materialized='table') }}

-- From which errors the intervals of each scored month are made, with a fingerprint of them.
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
        {{ content_fingerprint([
            'observation_id', 'history', 'surprise', 'rarity', 'area', 'log_error',
        ]) }} as fingerprint
    from traits
    -- without dates, the evaluation rows are what was known before
    where log_error is not null {{ "and split = 'eval'" if not contract().observed_on }}
    group by model_version, month
),

latest as (
    -- a month without prices of its own before it uses the latest there are
    select
        scored.model_version,
        scored.month,
        max(known.month) as known_through
    from scored
    inner join known on scored.model_version = known.model_version and scored.month > known.month
    group by scored.model_version, scored.month
),

final as (
    select
        latest.model_version,
        latest.month,
        {{ add_months('latest.known_through', 1 - window_months) }} as known_from,
        latest.known_through,
        concat_ws(
            ' ', latest.model_version, latest.month, {{ joined_text('known.fingerprint', 'known.month') }}
        ) as fingerprint
    from latest
    inner join known
        on
            latest.model_version = known.model_version
            and latest.known_through >= known.month
            and {{ add_months('latest.known_through', -window_months) }} < known.month
    group by latest.model_version, latest.month, latest.known_through
)

select * from final
