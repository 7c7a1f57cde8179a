{{ config(
    materialized='incremental', incremental_strategy='append', on_schema_change='fail',
    pre_hook="{{ forget_changed_series(ref('int_drift_series')) }}",
) }}
{%- set features = feature_names() %}
{%- set values = prediction_values() %}
{%- set names = features + (values.keys() | list) %}

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
    where kind = 'model' and mode = 'batch'
),

features as (
    select * from {{ ref('features') }}
    where month in (select series.month from series)
),

prediction_members as (
    select
        series.series_id,
        series.part,
        predictions.predicted_price,
        features.*
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

-- numbers stand for names: there are millions of rows
names as (
    select
        {{ unpivoted(range(1, names | length + 1) | list, [literals(names)], 'feature_id', 'feature') }}
),

unpivoted as (
    select
        series_id,
        {{ unpivoted(range(1, features | length + 1) | list, features, 'feature_id', 'value') }}
    from feature_members
    union all
    select
        series_id,
        {{ unpivoted(
            range(features | length + 1, names | length + 1) | list, values.values() | list, 'feature_id', 'value'
        ) }}
    from prediction_members
),

measured as (
    select
        series_id,
        feature_id,
        value,
        count(*) as n
    from unpivoted
    -- a price that is not known yet is not missing
    where value is not null or feature_id <= {{ features | length + 1 }}
    group by series_id, feature_id, value
),

counted as (
    select
        series_id,
        feature_id,
        sum(case when value is not null then n else 0 end) as n,
        sum(case when value is null then n else 0 end) as n_missing
    from measured
    group by series_id, feature_id
),

points as (
    {%- for relation in [ref('training_profile'), ref('prediction_profile')] %}
    select * from {{ relation }}
    where point > 0 and model_version in (select series.model_version from series)
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
                        floor(10 * profile.through / reference.n)
                        > floor(10 * (profile.through - profile.n) / reference.n)
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
        series.model_version,
        series.month,
        series.part,
        series.fingerprint,
        names.feature,
        counted.series_id,
        counted.feature_id,
        cast(counted.n as double) as n,
        cast(counted.n_missing as double) as n_missing,
        cast(reference.n as double) as reference_n,
        reference.std,
        reference.is_category,
        cast(row_number() over (order by counted.series_id, counted.feature_id) as integer) as group_id
    from counted
    inner join series on counted.series_id = series.series_id
    inner join names on counted.feature_id = names.feature_id
    inner join {{ ref('int_drift_reference') }} as reference
        on series.model_version = reference.model_version and names.feature = reference.feature
),

-- a value of the month comes before the same value of the profile
mixed as (
    select
        compared.group_id,
        measured.value,
        cast(measured.n as double) as n,
        measured.n / compared.n as step,
        0 as edge,
        0 as is_reference
    from measured
    inner join compared on measured.series_id = compared.series_id and measured.feature_id = compared.feature_id
    where measured.value is not null and compared.reference_n > 0
    union all
    select
        compared.group_id,
        edged.value,
        cast(edged.n as double) as n,
        -edged.n / compared.reference_n as step,
        edged.edge,
        1 as is_reference
    from edged
    inner join compared on edged.model_version = compared.model_version and edged.feature = compared.feature
    where compared.n > 0
),

walked as (
    select
        group_id,
        n,
        is_reference,
        sum(step) over by_value as difference,
        sum(edge) over by_value - edge as bin,
        lead(value) over by_value - value as gap
    from mixed
    window by_value as (
        partition by group_id
        order by value, is_reference
        rows between unbounded preceding and current row
    )
),

distances as (
    select
        group_id,
        max(case when gap > 0 or gap is null then abs(difference) end) as ks,
        coalesce(sum(abs(difference) * gap), 0) as wasserstein,
        sum(case when is_reference = 0 and (gap > 0 or gap is null) then n else 0 end) as n_unseen
    from walked
    group by group_id
),

bins as (
    select
        walked.group_id,
        sum(case when walked.is_reference = 0 then walked.n else 0 end) as n,
        sum(case when walked.is_reference = 1 then walked.n else 0 end) as reference_n
    from walked
    inner join compared on walked.group_id = compared.group_id
    group by
        walked.group_id,
        case
            when compared.is_category and walked.is_reference = 0 and (walked.gap > 0 or walked.gap is null) then -1
            else walked.bin
        end
),

shares as (
    -- half a row is added to every bin of psi, so that an empty one is rare and not impossible
    select
        bins.group_id,
        bins.n / compared.n as share,
        bins.reference_n / compared.reference_n as reference_share,
        (bins.n + 0.5) / (compared.n + 0.5 * count(*) over (partition by bins.group_id)) as p,
        (bins.reference_n + 0.5) / (compared.reference_n + 0.5 * count(*) over (partition by bins.group_id)) as q
    from bins
    inner join compared on bins.group_id = compared.group_id
),

divergences as (
    select
        group_id,
        count(*) as bins,
        sum((p - q) * ln(p / q)) as psi,
        sqrt(greatest(sum(
            case when share > 0 then share * ln(share / ((share + reference_share) / 2)) else 0 end
            + case
                when reference_share > 0 then reference_share * ln(reference_share / ((share + reference_share) / 2))
                else 0
            end
        ) / 2, 0)) as js
    from shares
    group by group_id
),

final as (
    select
        compared.model_version,
        compared.month,
        compared.part,
        compared.feature,
        cast(compared.n + compared.n_missing as bigint) as n,
        cast(compared.n as bigint) as n_known,
        divergences.bins,
        divergences.psi,
        divergences.js,
        distances.ks,
        case
            when distances.wasserstein = 0 then 0
            else distances.wasserstein / nullif(compared.std, 0)
        end as wasserstein,
        100 * compared.n_missing / (compared.n + compared.n_missing) as missing_pct,
        case when compared.is_category then 100 * distances.n_unseen / compared.n end as unseen_pct,
        compared.fingerprint
    from compared
    left join distances on compared.group_id = distances.group_id
    left join divergences on compared.group_id = divergences.group_id
)

select * from final
