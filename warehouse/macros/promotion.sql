{#
  When a challenger replaces the champion and when a training may start: the contract's blocks `promotion` and
  `retraining` with the defaults of ml/contract.py (tests/unit/test_contract.py holds the two together).
#}

{% macro promotion_rules() %}
  {% set rules = {
      'mode': 'auto', 'window_months': 6, 'min_rows': 100, 'margin_pct': 1.0, 'max_segment_loss_pct': 15.0,
      'shadow_months': 2, 'canary_share': 0.1, 'canary_months': 2,
  } %}
  {% do rules.update(contract().promotion | default({})) %}
  {{ return(rules) }}
{% endmacro %}

{% macro retraining_rules() %}
  {% set rules = {'min_new_labels': 300, 'cooldown_months': 3, 'max_attempts': 3} %}
  {% do rules.update(contract().retraining | default({})) %}
  {{ return(rules) }}
{% endmacro %}

{# Number as text with one digit, for sentences. #}
{% macro shown(x) %}{{ return("coalesce(cast(round(" ~ x ~ ", 1) as varchar), 'unknown')") }}{% endmacro %}
