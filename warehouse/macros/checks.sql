{#
  Cleaning by contract: bounds, missing values, required columns, price rules. Reasons are lists of
  `column:problem`; the booleans follow from them.
#}

{# Condition under which a value stands for missing (numbers; texts were handled while parsing). #}
{% macro stands_for_missing(c) %}
  {% set numbers = missing_values(c).numbers %}
  {{ return(c.name ~ ' in (' ~ numbers | join(', ') ~ ')' if numbers else none) }}
{% endmacro %}

{% macro out_of_range(c) %}
  {% set tests = [] %}
  {% if c.min is defined %}{% do tests.append(c.name ~ ' < ' ~ c.min) %}{% endif %}
  {% if c.max is defined %}{% do tests.append(c.name ~ ' > ' ~ c.max) %}{% endif %}
  {{ return('(' ~ tests | join(' or ') ~ ')' if tests else none) }}
{% endmacro %}

{# ` and not …` where some number of the column stands for missing. #}
{% macro unless_missing(c) %}
  {{ return(' and not ' ~ stands_for_missing(c) if stands_for_missing(c) else '') }}
{% endmacro %}

{# Value after treatment: null when it stands for missing or lies outside its bounds. #}
{% macro treated_value(c) %}
  {% set conditions = [] %}
  {% if stands_for_missing(c) %}{% do conditions.append(stands_for_missing(c)) %}{% endif %}
  {% if out_of_range(c) and c.role | default('feature') != 'price' %}{% do conditions.append(out_of_range(c)) %}{% endif %}
  {{ return('case when ' ~ conditions | join(' or ') ~ ' then null else ' ~ c.name ~ ' end' if conditions else c.name) }}
{% endmacro %}

{# Labels of single values: the row stays, the value does not. #}
{% macro value_problems() %}
  {% set problems = [] %}
  {% for c in contract_columns() %}
    {% set is_price = c.role | default('feature') == 'price' %}
    {% if stands_for_missing(c) %}
      {% do problems.append({'when': stands_for_missing(c), 'label': c.name ~ ':missing'}) %}
    {% endif %}
    {% if not is_price and out_of_range(c) and c.outside | default('null', true) == 'null' %}
      {% do problems.append({'when': out_of_range(c) ~ unless_missing(c), 'label': c.name ~ ':out_of_range'}) %}
    {% endif %}
    {% if not is_price and c.encode is defined %}
      {% do problems.append({'when': c.name ~ ' not in (' ~ literals(c['values']) ~ ')', 'label': c.name ~ ':unseen_value'}) %}
    {% endif %}
  {% endfor %}
  {{ return(problems) }}
{% endmacro %}

{# Reasons to reject a row, from its features and keys only, never its price. #}
{% macro row_problems() %}
  {% set problems = [] %}
  {% for c in contract_columns() if c.role | default('feature') != 'price' %}
    {% if c.required | default(false) %}
      {% set is_missing = ' or ' ~ stands_for_missing(c) if stands_for_missing(c) else '' %}
      {% do problems.append({'when': '(' ~ c.name ~ ' is null' ~ is_missing ~ ')', 'label': c.name ~ ':missing'}) %}
    {% endif %}
    {% if out_of_range(c) and c.outside | default('null') == 'reject' %}
      {% do problems.append({'when': out_of_range(c) ~ unless_missing(c), 'label': c.name ~ ':out_of_range'}) %}
    {% endif %}
  {% endfor %}
  {{ return(problems) }}
{% endmacro %}

{# Reasons why a price is not used as a label. A price that is absent is no fault: the row is to be scored. #}
{% macro price_problems() %}
  {% set problems = [] %}
  {% for c in contract_columns('price') %}
    {# whatever the contract allows: a price is worked with as a logarithm #}
    {% set wrong = out_of_range(c) ~ ' or ' if out_of_range(c) else '' %}
    {% do problems.append({
        'when': '(' ~ wrong ~ c.name ~ ' <= 0)' ~ unless_missing(c), 'label': c.name ~ ':out_of_range'}) %}
    {% set unreadable = c.name ~ ':not_a_number' %}
    {% do problems.append({'when': list_has('parse_labels', unreadable), 'label': unreadable}) %}
    {# a slip in the year: its price would stand for the newest market. A month to spare, as days differ around the world #}
    {% if contract().observed_on %}
      {% do problems.append({
          'when': c.name ~ ' is not null and observed_on >= ' ~ add_months(month_of('_loaded_at'), 2),
          'label': contract().observed_on ~ ':after_it_landed'}) %}
    {% endif %}
  {% endfor %}
  {{ return(problems) }}
{% endmacro %}

{% macro literals(values) %}
  {% set out = [] %}
  {% for value in values %}{% do out.append(literal(value)) %}{% endfor %}
  {{ return(out | join(', ')) }}
{% endmacro %}

{# Month of an observation; datasets without dates live in one month. #}
{% macro observation_month() %}
  {{ return(month_of('observed_on') if contract().observed_on else "date '1970-01-01'") }}
{% endmacro %}

{# Share of the keys, from the lowest hash on, that is the holdout of a dataset without dates. #}
{% macro holdout_share() %}{{ return((contract().split | default({})).holdout_share | default(0.2)) }}{% endmacro %}

{# Split of the contract's default window: by month where there are dates, by a stable hash of the key elsewhere. #}
{% macro split_of(month, observation_id, price, price_reasons) %}
  {% set split = contract().split %}
  {% if contract().observed_on %}
    {% set through = "date '" ~ split.trained_through ~ "-01'" %}
    {% set is_train = month ~ ' <= ' ~ add_months(through, '-' ~ (split.eval_months | default(12))) %}
    {% set is_eval = month ~ ' <= ' ~ through %}
  {% else %}
    {% set share = hash_share(observation_id) %}
    {% set is_train = share ~ ' >= ' ~ ((split.eval_share | default(0.2)) + holdout_share()) %}
    {% set is_eval = share ~ ' >= ' ~ holdout_share() %}
  {% endif %}
        case
            when {{ price }} is null and {{ list_size(price_reasons) }} = 0 then 'to_score'
            when {{ is_train }} then 'train'
            when {{ is_eval }} then 'eval'
            else 'holdout'
        end
{%- endmacro %}
