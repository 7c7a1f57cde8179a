{#
  Prediction intervals: traits that scale them, and levels. A trait's factor is estimated on what the traits before it
  leave, so the last one (the area) is calibrated best.
#}

{% macro interval_traits() %}{{ return(['history', 'surprise', 'rarity', 'area']) }}{% endmacro %}

{#
  What is usual of an area that a version has not learned from: six towns of hdb hidden until 2021-01, and six others, had
  2.83 times the error that their other traits let expect (docs/experiments.md, 2026-11-30). Its own errors count as
  their credibility has it (Buehlmann and Straub 1970): variance within the towns 2.26, between them 0.41.
#}
{% macro new_area() %}{{ return({'factor': 2.83, 'weight': 5.5}) }}{% endmacro %}

{# Name, share covered and column of each level; std is the share of a normal distribution within one deviation. #}
{% macro interval_levels() %}
  {{ return([
      {'name': '50', 'share': 0.5, 'column': 'q_50'},
      {'name': '80', 'share': 0.8, 'column': 'q_80'},
      {'name': '95', 'share': 0.95, 'column': 'q_95'},
      {'name': 'std', 'share': 0.682689, 'column': 'q_std'},
  ]) }}
{% endmacro %}

{# Known errors that every level's quantile exists for: with one more row at hand, 95 % of 20 are 19. #}
{% macro interval_least_n() %}{{ return(19) }}{% endmacro %}

{# Condition on int_prediction_traits: an error that intervals may be made from. Without dates, the evaluation rows are
   what was known before. #}
{% macro is_known_error() %}
  {{ return("mode = 'batch' and log_error is not null" ~ ("" if contract().observed_on else " and split = 'eval'")) }}
{% endmacro %}

{# Class of a number by ascending upper bounds: '1' is at most the first; 'unknown' without a value. #}
{% macro class_of(x, bounds) -%}
        case
            when {{ x }} is null then 'unknown'
            {%- for bound in bounds %}
            when {{ x }} <= {{ bound }} then '{{ loop.index }}'
            {%- endfor %}
            else '{{ bounds | length + 1 }}'
        end
{%- endmacro %}

{# Mean whose sum is exact, so that it does not depend on the order of rows. #}
{% macro exact_mean(x) %}{{ return('sum(cast(round(1e9 * ' ~ x ~ ') as bigint)) / 1e9 / count(*)') }}{% endmacro %}

{# What the traits of a prediction are classes of, from its price and the features beside it. The API asks it, too. #}
{% macro trait_distances() %}
        abs(ln(predicted_price / persistence_price)) as log_distance_to_persistence,
        abs(ln(predicted_price) - target_offset) as log_distance_to_level
{%- endmacro %}

{% macro trait_classes() %}
        {{ class_of('history_n', [0, 1, 3, 7, 15]) }} as history,
        {{ class_of('log_distance_to_persistence', [0.02, 0.05, 0.1, 0.2]) }} as surprise,
        {{ class_of('log_distance_to_level', [0.1, 0.2, 0.3, 0.5]) }} as rarity,
        coalesce(area, 'unknown') as area
{%- endmacro %}
