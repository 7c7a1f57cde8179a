-- How much each feature moves the prices of a month, and how that changed since the month before.
with explanations as (
    select * from {{ source('predictions', 'explanations') }}
),

predictions as (
    select
        observation_id,
        model_version,
        predicted_price
    from {{ source('predictions', 'predictions') }}
),

measured as (
    select
        explanations.model_version,
        explanations.month,
        explanations.feature,
        count(*) as n,
        avg(abs(explanations.contribution)) as mean_absolute_contribution,
        100 * avg(abs(explanations.contribution) / predictions.predicted_price) as mean_absolute_share_pct
    from explanations
    inner join predictions
        on
            explanations.observation_id = predictions.observation_id
            and explanations.model_version = predictions.model_version
    where explanations.rank > 0
    group by explanations.model_version, explanations.month, explanations.feature
),

final as (
    select
        model_version,
        month,
        feature,
        n,
        mean_absolute_contribution,
        mean_absolute_share_pct,
        rank() over (
            partition by model_version, month
            order by mean_absolute_share_pct desc
        ) as importance_rank,
        mean_absolute_share_pct - lag(mean_absolute_share_pct) over (
            partition by model_version, feature
            order by month
        ) as change_in_share_pct
    from measured
)

select * from final
