{{ config(
    materialized='incremental', incremental_strategy='append', on_schema_change='fail',
    pre_hook="{{ forget_changed_series(ref('int_drift_series')) }}",
) }}
{%- set features = feature_names() %}
{%- set families = [
    {'members': 'feature_members', 'names': features, 'columns': features},
    {'members': 'prediction_members', 'names': prediction_values().keys() | list, 'columns': prediction_values().values() | list},
] %}

-- How far each month is from the version's profiles. Values are unpivoted once; one walk along month and profile in
-- the order of values gives every statistic.
with series as (
    select
        *,
        cast(row_number() over (order by model_version, month, part) as integer) as series_id
    from {{ ref('int_drift_series') }}
    where {{ is_new_series() }}
),

versions as (
    select
        model_version,
        trained_through
    from {{ source('training', 'model_versions') }}
),

predictions as (
    select
        observation_id,
        model_version,
        predicted_price,
        case when split = 'eval' then 'training' else 'scored' end as part
    from {{ source('predictions', 'predictions') }}
    where kind = 'model'
),

features as (
    select * from {{ ref('features') }}
),

prediction_members as (
    select
        series.series_id,
        series.part,
        predictions.predicted_price,
        features.* exclude (month)
    from predictions
    inner join features on predictions.observation_id = features.observation_id
    inner join series
        on
            predictions.model_version = series.model_version
            and predictions.part = series.part
            and features.month = series.month
),

feature_members as (
    select
        series_id
        {%- for feature in features %},
        {{ feature }}
        {%- endfor %}
    from prediction_members
    where part = 'scored'
    union all
    select
        series.series_id
        {%- for feature in features %},
        features.{{ feature }}
        {%- endfor %}
    from features
    inner join series on features.month = series.month and series.part = 'training'
    inner join versions on series.model_version = versions.model_version
    where {{ is_in_training_window() }}
),

measured as (
    {%- for family in families %}
    select
        series_id,
        feature,
        value,
        count(*) as n
    from (
        select
            series_id,
            {{ unpivoted(family['names'], family['columns'], 'feature', 'value') }}
        from {{ family['members'] }}
    ) as unpivoted
    {%- if not loop.first %}
    -- a price that is not known yet is not missing
    where value is not null or feature = 'prediction'
    {%- endif %}
    group by series_id, feature, value
    {{ 'union all' if not loop.last }}
    {%- endfor %}
),

counted as (
    select
        series_id,
        feature,
        sum(case when value is not null then n else 0 end) as n,
        sum(case when value is null then n else 0 end) as n_missing
    from measured
    group by series_id, feature
),

points as (
    {%- for relation in [ref('training_profile'), ref('prediction_profile')] %}
    select * from {{ relation }}
    where point > 0 and model_version in (select model_version from series)
    {{ 'union all' if not loop.last }}
    {%- endfor %}
),

profile as (
    select
        *,
        sum(n) over by_value as through,
        lead(n) over by_value as next_n
    from points
    window by_value as (
        partition by model_version, feature
        order by point
        rows between unbounded preceding and current row
    )
),

-- bins end at the tenths of the training rows and right before a value that a tenth of them share; a category is a bin
edged as (
    select
        profile.model_version,
        profile.feature,
        profile.value,
        profile.n,
        reference.n as total,
        case
            when
                reference.is_category
                or (
                    profile.through < reference.n
                    and (
                        floor(10 * profile.through / reference.n) > floor(10 * (profile.through - profile.n) / reference.n)
                        or 10 * profile.next_n >= reference.n
                    )
                )
                then 1
            else 0
        end as edge
    from profile
    inner join {{ ref('int_drift_reference') }} as reference
        on profile.model_version = reference.model_version and profile.feature = reference.feature
),

compared as (
    select
        counted.series_id,
        counted.feature,
        counted.n,
        counted.n_missing,
        reference.is_category,
        reference.std,
        reference.n as reference_n,
        series.model_version
    from counted
    inner join series on counted.series_id = series.series_id
    inner join {{ ref('int_drift_reference') }} as reference
        on series.model_version = reference.model_version and counted.feature = reference.feature
),

-- a value of the month comes before the same value of the profile
mixed as (
    select
        compared.series_id,
        compared.feature,
        measured.value,
        measured.n as n,
        cast(measured.n as double) / compared.n as share,
        0.0 as reference_share,
        0.0 as reference_n,
        0 as edge,
        0 as is_reference
    from measured
    inner join compared on measured.series_id = compared.series_id and measured.feature = compared.feature
    where measured.value is not null and compared.reference_n > 0
    union all
    select
        compared.series_id,
        compared.feature,
        edged.value,
        0 as n,
        0.0 as share,
        cast(edged.n as double) / edged.total as reference_share,
        edged.n as reference_n,
        edged.edge,
        1 as is_reference
    from edged
    inner join compared on edged.model_version = compared.model_version and edged.feature = compared.feature
    where compared.n > 0
),

walked as (
    select
        *,
        sum(share - reference_share) over by_value as difference,
        sum(edge) over by_value - edge as bin,
        lead(value) over by_value - value as gap
    from mixed
    window by_value as (
        partition by series_id, feature
        order by value, is_reference
        rows between unbounded preceding and current row
    )
),

distances as (
    select
        series_id,
        feature,
        max(case when gap > 0 or gap is null then abs(difference) end) as ks,
        coalesce(sum(abs(difference) * gap), 0) as wasserstein,
        100 * sum(case when is_reference = 0 and (gap > 0 or gap is null) then share else 0 end) as not_in_profile_pct
    from walked
    group by series_id, feature
),

bins as (
    select
        walked.series_id,
        walked.feature,
        sum(walked.share) as share,
        sum(walked.reference_share) as reference_share,
        sum(walked.n) as n,
        sum(walked.reference_n) as reference_n,
        count(*) over (partition by walked.series_id, walked.feature) as bins
    from walked
    inner join compared on walked.series_id = compared.series_id and walked.feature = compared.feature
    group by
        walked.series_id,
        walked.feature,
        case
            when compared.is_category and walked.is_reference = 0 and (walked.gap > 0 or walked.gap is null) then -1
            else walked.bin
        end
),

smoothed as (
    -- half a row is added to every bin, so that an empty one is rare and not impossible
    select
        *,
        (n + 0.5) / (sum(n) over (partition by series_id, feature) + 0.5 * bins) as p,
        (reference_n + 0.5) / (sum(reference_n) over (partition by series_id, feature) + 0.5 * bins) as q
    from bins
),

divergences as (
    select
        series_id,
        feature,
        max(bins) as bins,
        sum((p - q) * ln(p / q)) as psi,
        sqrt(greatest(sum(
            case when share > 0 then share * ln(share / ((share + reference_share) / 2)) else 0 end
            + case
                when reference_share > 0 then reference_share * ln(reference_share / ((share + reference_share) / 2))
                else 0
            end
        ) / 2, 0)) as js
    from smoothed
    group by series_id, feature
),

final as (
    select
        series.model_version,
        series.month,
        series.part,
        compared.feature,
        cast(compared.n as bigint) as n_known,
        cast(compared.n + compared.n_missing as bigint) as n,
        cast(divergences.bins as bigint) as bins,
        divergences.psi,
        divergences.js,
        distances.ks,
        case
            when distances.wasserstein = 0 then 0
            else distances.wasserstein / nullif(compared.std, 0)
        end as wasserstein,
        100.0 * compared.n_missing / (compared.n + compared.n_missing) as missing_pct,
        case when compared.is_category then distances.not_in_profile_pct end as unseen_pct,
        series.fingerprint
    from compared
    inner join series on compared.series_id = series.series_id
    left join distances on compared.series_id = distances.series_id and compared.feature = distances.feature
    left join divergences on compared.series_id = divergences.series_id and compared.feature = divergences.feature
)

select * from final
