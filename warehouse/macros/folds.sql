{#
  Folds on which choices are made: by time (rolling origins) or by a hash of the key. What a fold trains and stops on is
  earlier than its test, or another part of the keys; months after the contract's training window belong to no fold.
#}

{% macro fold_method() %}
  {% set k = contract() %}
  {% set default = 'time' if k.observed_on else 'hash' %}
  {{ return((k.folds | default({})).method | default(default)) }}
{% endmacro %}

{# Number of folds; dbt parses before the contract is known. #}
{% macro fold_count() %}{{ return((contract().folds | default({})).count | default(4)) }}{% endmacro %}

{# First and last month of the roles of a fold, as SQL; the first role is open to the past. #}
{% macro fold_windows(fold) %}
  {% set k = contract() %}
  {% set folds = k.folds | default({}) %}
  {% set test_months, gap = folds.test_months | default(6), folds.gap_months | default(0) %}
  {% set test_from = (fold_count() - fold + 1) * test_months - 1 %}
  {% set eval_from = test_from + gap + (k.split.eval_months | default(12)) %}
  {% set through = "date '" ~ (k.split.trained_through | default('1970-01')) ~ "-01'" %}
  {{ return([
      {'role': 'train', 'from': "date '0001-01-01'", 'to': add_months(through, '-' ~ (eval_from + 1))},
      {'role': 'eval', 'from': add_months(through, '-' ~ eval_from), 'to': add_months(through, '-' ~ (test_from + gap + 1))},
      {'role': 'gap', 'from': add_months(through, '-' ~ (test_from + gap)), 'to': add_months(through, '-' ~ (test_from + 1))},
      {'role': 'test', 'from': add_months(through, '-' ~ test_from), 'to': add_months(through, '-' ~ (test_from - test_months + 1))},
  ]) }}
{% endmacro %}
