{#
  Drift: what a version's training window looked like (profiles), how far a month is from it, and from which distance
  on that is more than chance. Formulas of the distances stand in models/monitoring/int_drift_statistics.sql.
#}

{# A profile has about this many points where more values differ: each stands for 1/500 of the rows or one value. #}
{% macro profile_parts() %}{{ return(500) }}{% endmacro %}

{# Features with at most this many values in training, all whole numbers, are categories: each has its own bin, another value is unseen. #}
{% macro category_limit() %}{{ return(25) }}{% endmacro %}

{# Months at the end of the training window whose distance from all of it is what is usual. #}
{% macro usual_months() %}{{ return(12) }}{% endmacro %}

{# Names of the model's inputs; dbt parses before the contract is known. #}
{% macro feature_names() %}{{ return(feature_columns() | map(attribute='name') | list if execute else []) }}{% endmacro %}

{# What is compared besides features, as expressions over a prediction joined to its features. Prices are compared on
   the scale that the model learns, relative to the as-of level, so that a rising market is no drift. #}
{% macro prediction_values() %}
  {{ return({
      'prediction': 'case when ' ~ is_positive('predicted_price') ~ ' then ln(predicted_price) - target_offset end',
      'residual': 'case when is_price_valid and price > 0 and ' ~ is_positive('predicted_price') ~ ' then ln(predicted_price / price) end',
      'target': 'case when is_price_valid and price > 0 then ln(price) - target_offset end',
  }) }}
{% endmacro %}

{# Condition on features, beside a version: a row of the version's training window. #}
{% macro is_in_training_window() %}
  {{ return('features.is_price_valid and features.price > 0 and ' ~ (
      'features.month <= versions.trained_through' if contract().observed_on
      else "features.split in ('train', 'eval')")) }}
{% endmacro %}

{# Condition on model_version: the model holds no row of it yet. #}
{% macro is_new_version() %}
  {{ return('model_version not in (select model_version from ' ~ this ~ ')' if execute and is_incremental() else 'true') }}
{% endmacro %}

{#
  CTEs from a relation of rows with a column model_version to `final`, the profile of some of its columns: a point a
  value where they are few, else the mean of each 1/500 of the rows, and any value that so many rows share stands alone.
  `conditions` says which rows count for a column, all when it has none.
#}
{% macro profile_of(relation, columns, conditions={}) -%}
-- a column at a time: sorting one costs little memory
counted as (
    {%- for column in columns %}
    select
        model_version,
        '{{ column }}' as feature,
        {{ column }} as value,
        count(*) as n,
        sum(count({{ column }})) over (partition by model_version) as total,
        count({{ column }}) over (partition by model_version) as distinct_values,
        sum(count({{ column }})) over (
            partition by model_version
            order by {{ column }}
            rows between unbounded preceding and current row
        ) as through
    from {{ relation }}
    where {{ conditions.get(column, 'true') }}
    group by model_version, {{ column }}
    {{ 'union all' if not loop.last }}
    {%- endfor %}
),

parted as (
    select
        *,
        distinct_values <= {{ 2 * profile_parts() }} as is_exact,
        floor({{ profile_parts() }} * through / total) as part,
        case
            when distinct_values <= {{ 2 * profile_parts() }} or {{ profile_parts() }} * n >= total then value
        end as lone_value
    from counted
    where value is not null
),

points as (
    select
        model_version,
        feature,
        is_exact,
        coalesce(lone_value, sum(n * value) / sum(n)) as value,
        sum(n) as n
    from parted
    group by model_version, feature, is_exact, part, lone_value
),

missing as (
    select
        model_version,
        feature,
        sum(case when value is null then n else 0 end) as n
    from counted
    group by model_version, feature
),

final as (
    select
        model_version,
        feature,
        cast(row_number() over (partition by model_version, feature order by value) as integer) as point,
        value,
        cast(n as bigint) as n,
        is_exact
    from points
    union all
    select
        model_version,
        feature,
        0 as point,
        cast(null as double) as value,
        cast(n as bigint) as n,
        true as is_exact
    from missing
)
{%- endmacro %}

{# Standard normal quantile at the upper tail `p` < 0.5 (Abramowitz and Stegun 1964, 26.2.23; error below 4.5e-4). #}
{% macro normal_upper(p) -%}
{%- set t = 'sqrt(-2 * ln(' ~ p ~ '))' -%}
({{ t }} - (2.515517 + 0.802853 * {{ t }} + 0.010328 * {{ t }} * {{ t }})
    / (1 + 1.432788 * {{ t }} + 0.189269 * {{ t }} * {{ t }} + 0.001308 * {{ t }} * {{ t }} * {{ t }}))
{%- endmacro %}

{# Statistics that are judged; the first four compare known values. #}
{% macro value_distances() %}{{ return(['psi', 'js', 'ks', 'wasserstein']) }}{% endmacro %}
{% macro drift_statistics() %}{{ return(value_distances() + ['missing_pct', 'unseen_pct']) }}{% endmacro %}

{# What the PSI of as many bins does not exceed; eight times the Jensen-Shannon divergence is about the same. #}
{% macro chi_square_level() -%}
s2 * degrees * (1 + least(0.3, 1.5 * (degrees + 1) * s2))
        * power(1 - 2 / (9.0 * degrees) + {{ normal_upper('chance') }} * sqrt(2 / (9.0 * degrees)), 3)
{%- endmacro %}

{#
  Select list: for each statistic what chance alone does not exceed, but for a share `chance` of the months, when the
  month is `n` rows of the profile's distribution. `s2` is 1 / n + 1 / reference n, of the known rows or of all.
  psi and js: chi-square, by Wilson and Hilferty (1931), and up to 30 % more where bins hold few rows (simulated for 2 to
  50 bins and 30 to 1,000 rows). ks: Kolmogorov's distribution. wasserstein: its mean, and
  Bousquet's inequality (2002) for the supremum over functions with slope 1. Shares: Bernstein's inequality; rows that
  repeat no value of the profile are expected as often as it has values that stand alone (Good 1953).
#}
{% macro chance_levels() -%}
        {{ chi_square_level() }} as psi_chance,
        sqrt({{ chi_square_level() }} / 8) as js_chance,
        sqrt(ln(2 / chance) / 2 * s2) as ks_chance,
        (
            roughness * sqrt(s2)
            + sqrt(2 * ln(1 / chance) * s2 * (std * std + 2 * value_range * roughness * sqrt(s2)))
            + value_range * ln(1 / chance) * s2 / 3
        ) / nullif(std, 0) as wasserstein_chance,
        100 * (
            reference_missing_share
            + sqrt(2 * ln(1 / chance) * s2_all * reference_missing_share * (1 - reference_missing_share))
            + ln(1 / chance) * s2_all / 3
        ) as missing_pct_chance,
        100 * (
            reference_unseen_share
            + sqrt(2 * ln(1 / chance) * s2 * reference_unseen_share * (1 - reference_unseen_share))
            + ln(1 / chance) * s2 / 3
        ) as unseen_pct_chance
{%- endmacro %}

{#
  Whole model: drift of these features in every scored month, with verdicts. A statistic warns (fails) when it exceeds
  both chance and what is usual among the last training months by the floor of monitoring_thresholds.
#}
{% macro judged_drift(features) %}
with measured as (
    select * from {{ ref('int_drift_statistics') }}
    where feature in ({{ literals(features) if features else "''" }})
),

reference as (
    select * from {{ ref('int_drift_reference') }}
),

limits as (
{{ limits_of(drift_statistics() + ['false_alarms_pct']) }}
),

usual as (
    select
        measured.model_version,
        measured.feature
        {%- for statistic in drift_statistics() %},
        max(case when measured.n_known >= limits.minimum_n then measured.{{ statistic }} end) as {{ statistic }}_usual
        {%- endfor %}
    from measured
    cross join limits
    where measured.part = 'training'
    group by measured.model_version, measured.feature
),

described as (
    select
        measured.*,
        reference.n as reference_n,
        reference.std,
        reference.value_range,
        reference.roughness,
        100.0 * reference.n_missing / (reference.n + reference.n_missing) as reference_missing_pct,
        reference.n_missing / (reference.n + reference.n_missing) as reference_missing_share,
        (reference.n_singletons + 1.0) / (reference.n + 1.0) as reference_unseen_share,
        greatest(measured.bins - 1, 1) as degrees,
        1.0 / nullif(measured.n_known, 0) + 1.0 / nullif(reference.n, 0) as s2,
        1.0 / measured.n + 1.0 / (reference.n + reference.n_missing) as s2_all,
        -- half of the false alarms for the features, half for the predictions; shared by all that is judged
        limits.false_alarms_pct_warn_upper / 100 / 2 / {{ [features | length, 1] | max * drift_statistics() | length }} as chance
    from measured
    inner join reference on measured.model_version = reference.model_version and measured.feature = reference.feature
    cross join limits
    where measured.part = 'scored'
),

expected as (
    select
        *,
{{ chance_levels() }}
    from described
),

-- psi is not judged of what by its nature fills few bins a month, as one figure for the whole market: there it grows with n
limited as (
    select
        {{ qualified('expected', ['model_version', 'month', 'feature', 'n', 'n_known', 'reference_n', 'reference_missing_pct']) }},
        limits.minimum_n
        {%- for statistic in drift_statistics() %}
        {%- set judged = {
            'missing_pct': 'true',
            'psi': 'expected.n_known >= limits.minimum_n and coalesce(usual.psi_usual, 0) <= 1',
        }.get(statistic, 'expected.n_known >= limits.minimum_n') %},
        expected.{{ statistic }},
        {%- for severity in ['warn', 'fail'] %}
        case
            when {{ judged }} and expected.{{ statistic }} is not null
                then greatest(
                    coalesce(expected.{{ statistic }}_chance, 0),
                    coalesce(usual.{{ statistic }}_usual, {{ 'expected.reference_missing_pct' if statistic == 'missing_pct' else 0 }})
                    + limits.{{ statistic }}_{{ severity }}_upper
                )
        end as {{ statistic }}_{{ severity }}_limit
        {{- ',' if not loop.last }}
        {%- endfor %}
        {%- endfor %}
    from expected
    left join usual on expected.model_version = usual.model_version and expected.feature = usual.feature
    cross join limits
),

final as (
    select
        {{ qualified('limited', ['model_version', 'month', 'feature', 'n', 'n_known', 'reference_n']) }},
        {{ qualified('limited', drift_statistics() + ['reference_missing_pct']) }}
        {%- for statistic in drift_statistics() %},
        {{ statistic }}_warn_limit,
        {{ statistic }}_fail_limit
        {%- endfor %},
        greatest(
            {%- for statistic in drift_statistics() %}
            coalesce({{ statistic }} / nullif({{ statistic }}_warn_limit, 0), 0){{ ',' if not loop.last }}
            {%- endfor %}
        ) as excess,
        case
            when n < minimum_n or coalesce({{ drift_statistics() | join('_warn_limit, ') }}_warn_limit) is null
                then 'insufficient_data'
            {%- for severity in ['fail', 'warn'] %}
            when
                {%- for statistic in drift_statistics() %}
                {{ 'or ' if not loop.first }}{{ statistic }} > {{ statistic }}_{{ severity }}_limit
                {%- endfor %}
                then '{{ severity }}'
            {%- endfor %}
            else 'pass'
        end as status
    from limited
)

select * from final
{% endmacro %}
