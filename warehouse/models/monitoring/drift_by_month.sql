-- One verdict on the drift of each scored month.
with months as (
    select
        model_version,
        month,
        n
    from {{ ref('int_drift_series') }}
    where part = 'scored'
),

feature_drift as (
    select * from {{ ref('feature_drift') }}
),

prediction_drift as (
    select * from {{ ref('prediction_drift') }}
),

limits as (
{{ limits_of(['drifted_share_pct']) }}
),

by_feature as (
    select
        feature_drift.model_version,
        feature_drift.month,
        sum(case when feature_drift.status <> 'insufficient_data' then 1 else 0 end) as features,
        sum(case when feature_drift.status in ('warn', 'fail') then 1 else 0 end) as features_drifted,
        max(case when feature_drift.status in ('warn', 'fail') then feature_drift.excess end) as worst_excess
    from feature_drift
    group by feature_drift.model_version, feature_drift.month
),

worst as (
    select
        feature_drift.model_version,
        feature_drift.month,
        min(feature_drift.feature) as worst_feature
    from feature_drift
    inner join by_feature
        on
            feature_drift.model_version = by_feature.model_version
            and feature_drift.month = by_feature.month
            and feature_drift.excess = by_feature.worst_excess
    where feature_drift.status in ('warn', 'fail')
    group by feature_drift.model_version, feature_drift.month
),

by_prediction as (
    select
        model_version,
        month
        {%- for value in prediction_values() %},
        max(case when feature = '{{ value }}' then status end) as {{ value }}_status,
        max(case when feature = '{{ value }}' and status <> 'insufficient_data' then excess end) as {{ value }}_excess
        {%- endfor %}
    from prediction_drift
    group by model_version, month
),

shares as (
    select
        months.*,
        coalesce(by_feature.features, 0) as features,
        coalesce(by_feature.features_drifted, 0) as features_drifted,
        100.0 * by_feature.features_drifted / nullif(by_feature.features, 0) as drifted_share_pct,
        worst.worst_feature
        {%- for value in prediction_values() %},
        coalesce(by_prediction.{{ value }}_status, 'insufficient_data') as {{ value }}_status,
        by_prediction.{{ value }}_excess
        {%- endfor %}
    from months
    left join by_feature on months.model_version = by_feature.model_version and months.month = by_feature.month
    left join worst on months.model_version = worst.model_version and months.month = worst.month
    left join by_prediction on months.model_version = by_prediction.model_version and months.month = by_prediction.month
),

judged as (
    select
        shares.*,
        {{- status_of('drifted_share_pct') }} as feature_status
    from shares
    cross join limits
),

final as (
    select
        model_version,
        month,
        n,
        cast(features as bigint) as features,
        cast(features_drifted as bigint) as features_drifted,
        drifted_share_pct,
        worst_feature,
        feature_status,
        prediction_status,
        prediction_excess,
        residual_status,
        residual_excess,
        target_status,
        target_excess,
        {{- worst_status(['feature_status', 'prediction_status', 'residual_status', 'target_status']) }} as status
    from judged
)

select * from final
