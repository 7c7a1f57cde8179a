{{ config(
    materialized='incremental', incremental_strategy='append', on_schema_change='fail',
    pre_hook="{{ forget_changed_series(importance_months()) }}",
) }}

-- How much each feature moves the prices of a month; measured again only for months that were explained anew.
with months as (
    select * from {{ importance_months() }} as months
    where {{ is_new_series() }}
),

explanations as (
    select * from {{ source('predictions', 'explanations') }}
    where rank > 0
),

predictions as (
    select
        observation_id,
        model_version,
        predicted_price
    from {{ source('predictions', 'predictions') }}
),

final as (
    select
        explanations.model_version,
        explanations.month,
        explanations.feature,
        count(*) as n,
        avg(abs(explanations.contribution)) as mean_absolute_contribution,
        100 * avg(abs(explanations.contribution) / predictions.predicted_price) as mean_absolute_share_pct,
        max(months.fingerprint) as fingerprint
    from explanations
    inner join months
        on explanations.model_version = months.model_version and explanations.month = months.month
    inner join predictions
        on
            explanations.observation_id = predictions.observation_id
            and explanations.model_version = predictions.model_version
    group by explanations.model_version, explanations.month, explanations.feature
)

select * from final
