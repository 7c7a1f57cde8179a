{#
  Error metrics over matched predictions, and verdicts from the seed monitoring_thresholds. The Python twin of the
  metrics is ml/evaluate.py; tests/warehouse/test_monitoring_sql.py holds the two together.
#}

{# Share of rows whose absolute error is at most this share of the actual price, in percent. #}
{% macro within_pct(limit) %}{{ return('100 * avg(case when absolute_pct_error <= ' ~ limit ~ ' then 1.0 else 0.0 end)') }}{% endmacro %}

{# Condition: a price that a ratio can be made of. NaN is greater than infinity, so that neither passes. #}
{% macro is_positive(x) %}{{ return('(' ~ x ~ " > 0 and " ~ x ~ " < cast('infinity' as double))") }}{% endmacro %}

{# Aggregates over absolute_error, absolute_pct_error, actual_price and ratio. #}
{% macro error_metrics() -%}
        count(*) as n,
        avg(absolute_error) as mae,
        sqrt(avg(absolute_error * absolute_error)) as rmse,
        1 - avg(absolute_error * absolute_error) / nullif(var_pop(actual_price), 0) as r2,
        avg(absolute_pct_error) as mape_pct,
        {{ median_of('absolute_pct_error') }} as mdape_pct,
        {{ within_pct(5) }} as within_5_pct,
        {{ within_pct(10) }} as within_10_pct,
        {{ within_pct(20) }} as within_20_pct,
        {{ median_of('ratio') }} as median_ratio
{%- endmacro %}

{% macro error_metric_names() %}
  {{ return(['n', 'mae', 'rmse', 'r2', 'mape_pct', 'mdape_pct', 'within_5_pct', 'within_10_pct', 'within_20_pct', 'median_ratio']) }}
{% endmacro %}

{#
  Aggregates over ratio, deviation (from the median ratio, as a share of it), doublings (log2 of the value proxy) and
  price_rank. Statistics that need more variation than there is are null.
#}
{% macro ratio_metrics() -%}
        avg(ratio) as mean_ratio,
        sum(predicted_price) / sum(actual_price) as weighted_mean_ratio,
        100 * avg(abs(deviation)) as cod,
        avg(ratio) / (sum(predicted_price) / sum(actual_price)) as prd,
        covar_pop(deviation, doublings) / nullif(var_pop(doublings), 0) as prb,
        sqrt(
            greatest(var_pop(deviation) - power(covar_pop(deviation, doublings), 2) / nullif(var_pop(doublings), 0), 0)
            / nullif((count(*) - 2) * var_pop(doublings), 0)
        ) as prb_se,
        case
            when max(actual_price) > min(actual_price)
                then ({{ gini('predicted_price') }}) / ({{ gini('actual_price') }})
        end as mki
{%- endmacro %}

{% macro ratio_metric_names() %}
  {{ return(['mean_ratio', 'weighted_mean_ratio', 'cod', 'prd', 'prb', 'prb_se', 'mki']) }}
{% endmacro %}

{# Gini coefficient of `x` in the order of `price_rank` (1 is the cheapest). #}
{% macro gini(x) %}{{ return('2 * sum(price_rank * ' ~ x ~ ') / (count(*) * sum(' ~ x ~ ')) - (count(*) + 1.0) / count(*)') }}{% endmacro %}

{# `select` of columns of all predictions, of models and of what one would say without one. #}
{% macro predictions_and_baselines(columns) -%}
    {%- for relation in [source('predictions', 'predictions'), ref('baseline_predictions')] %}
    select
        {{ columns | join(',\n        ') }}
    from {{ relation }}
    {{ 'union all' if not loop.last }}
    {%- endfor %}
{%- endmacro %}

{#
  Split under which a prediction is measured once its price is known. What the API answered stands apart, because anybody
  may ask for homes that the version learned from.
#}
{% macro split_when_priced(split, mode, came_after='true') -%}
        case
            when {{ mode }} = 'online' then 'online'
            when {{ split }} = 'to_score' and {{ came_after }} then 'holdout'
            else {{ split }}
        end
{%- endmacro %}

{# Whole model: predictions of these months (a condition) beside the price that came. #}
{% macro matched_predictions(months='true') -%}
with predictions as (
    {{- predictions_and_baselines([
        'observation_id', 'model_version', 'kind', 'split', 'observed_on', 'month', 'area', 'locality',
        'predicted_price', 'scored_at', 'mode',
    ]) }}
),

wanted as (
    select * from predictions
    where {{ months }}
),

actuals as (
    select * from {{ ref('actuals') }}
    where source <> 'simulated'
),

matched as (
    select
        wanted.*,
        actuals.actual_price,
        actuals.is_price_valid,
        actuals.price_decile,
        actuals.landed_at,
        {{ is_positive('wanted.predicted_price') }} and actuals.actual_price > 0 as is_ratio_known
    from wanted
    inner join actuals on wanted.observation_id = actuals.observation_id
),

final as (
    select
        observation_id,
        model_version,
        kind,
        {{ split_when_priced('split', 'mode', 'landed_at >= scored_at') }} as split,
        observed_on,
        month,
        area,
        locality,
        price_decile,
        predicted_price,
        actual_price,
        is_price_valid,
        case when is_ratio_known then predicted_price / actual_price end as ratio,
        predicted_price - actual_price as error,
        case when is_ratio_known then 100 * (predicted_price - actual_price) / actual_price end as pct_error,
        {{ days_between('scored_at', 'landed_at') }} as lag_days,
        scored_at
    from matched
)

select * from final
{%- endmacro %}

{# Columns of a relation for a select list. #}
{% macro qualified(relation, names) -%}
        {%- for name in names -%}
        {{ relation }}.{{ name }}{{ ',\n        ' if not loop.last }}
        {%- endfor -%}
{%- endmacro %}

{# `select` of one row: for each metric the bounds beyond which it warns and fails, and the least n of a verdict. #}
{% macro limits_of(metrics) %}
    select
        {%- for metric in metrics %}
        {%- for severity in ['warn', 'fail'] %}
        max(case when metric = '{{ metric }}' and severity = '{{ severity }}' then lower_limit end) as {{ metric }}_{{ severity }}_lower,
        max(case when metric = '{{ metric }}' and severity = '{{ severity }}' then upper_limit end) as {{ metric }}_{{ severity }}_upper,
        {%- endfor %}
        {%- endfor %}
        max(case when metric = 'n' then lower_limit end) as minimum_n
    from {{ ref('monitoring_thresholds') }}
{%- endmacro %}

{# Verdict on one metric. Unknown is a status: too few rows, or no value. #}
{% macro status_of(metric) %}
        case
            when n < minimum_n or {{ metric }} is null then 'insufficient_data'
            when {{ metric }} < {{ metric }}_fail_lower or {{ metric }} > {{ metric }}_fail_upper then 'fail'
            when {{ metric }} < {{ metric }}_warn_lower or {{ metric }} > {{ metric }}_warn_upper then 'warn'
            else 'pass'
        end
{%- endmacro %}

{# The worst of the verdicts that could be given; insufficient_data when none could. #}
{% macro worst_status(statuses) %}
        case
            {%- for status in ['fail', 'warn', 'pass'] %}
            when '{{ status }}' in ({{ statuses | join(', ') }}) then '{{ status }}'
            {%- endfor %}
            else 'insufficient_data'
        end
{%- endmacro %}

{#
  Whole model: error groups of these kinds with a verdict on error and level, under the columns that tell the groups
  apart.
#}
{% macro judged_errors(segment_types, columns=[]) %}
with error_groups as (
    select * from {{ ref('int_error_groups') }}
    where segment_type in ({{ literals(segment_types) }})
),

limits as (
{{ limits_of(['mdape_pct', 'median_ratio']) }}
),

judged as (
    select
        error_groups.*,
        {{- status_of('mdape_pct') }} as mdape_pct_status,
        {{- status_of('median_ratio') }} as median_ratio_status
    from error_groups
    cross join limits
),

final as (
    select
        {{ qualified('judged', ['split', 'model_version', 'kind'] + columns + ['population'] + error_metric_names()) }},
        -- prices made from predictions say nothing of predictions
        case
            when population = 'simulated' then 'insufficient_data'
            else
        {{- worst_status(['mdape_pct_status', 'median_ratio_status']) }}
        end as status
    from judged
)

select * from final
{%- endmacro %}
