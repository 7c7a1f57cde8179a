-- How much each feature moves the prices of a month, and how that changed since the month before.
with measured as (
    select * from {{ ref('int_feature_importance') }}
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
