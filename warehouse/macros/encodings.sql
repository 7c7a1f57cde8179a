{#
  Point-in-time encodings by contract: names of key columns and the price level that features are relative to.
#}

{# Value of an encoding's or error group's key set; parts joined by a character that no key holds. #}
{% macro encoding_key(of) %}
  {% if not of['keys'] %}{{ return("'all'") }}{% endif %}
  {% set parts, bands = [], of.bands or {} %}
  {% for key in of['keys'] %}
    {% do parts.append('floor(' ~ key ~ ' / ' ~ bands[key] ~ ')' if key in bands else key) %}
  {% endfor %}
  {{ return('concat_ws(chr(31), ' ~ parts | join(', ') ~ ')' if parts | length > 1 else parts[0]) }}
{% endmacro %}

{# Name of an encoding's key set; encodings of the same keys share their monthly sums. #}
{% macro encoding_key_set(encoding) %}
  {% set parts, bands = [], encoding.bands or {} %}
  {% for key in encoding['keys'] %}
    {% do parts.append(key ~ '_by_' ~ (bands[key] | string | replace('.', '_')) if key in bands else key) %}
  {% endfor %}
  {{ return('by_' ~ (parts | join('_and_') or 'nothing')) }}
{% endmacro %}

{# The key sets of the contract's encodings, each once: name and the SQL of its value. #}
{% macro encoding_key_sets() %}
  {% set found = {} %}
  {% for e in contract().encodings %}{% do found.update({encoding_key_set(e): encoding_key(e)}) %}{% endfor %}
  {{ return(found) }}
{% endmacro %}

{# Months that the longest encoding looks back. #}
{% macro longest_reach() %}
  {{ return(((contract().encodings | map(attribute='months_back') | map('last') | list) + [1]) | max) }}
{% endmacro %}

{# Logarithm of a column, null where there is none. #}
{% macro log_of(name) %}{{ return('case when ' ~ name ~ ' > 0 then ln(' ~ name ~ ') end') }}{% endmacro %}

{# What encodings average: the logarithm of the price, per unit of size where the contract names one. #}
{% macro log_price() %}
  {% set size = contract().size %}
  {{ return('case when price > 0 and ' ~ size ~ ' > 0 then ln(price / ' ~ size ~ ') end' if size else log_of('price')) }}
{% endmacro %}

{# The encoding whose keys and window tell which sales are like for like in the market index; none without one. #}
{% macro like_for_like() %}
  {% set k = contract() %}
  {% for e in k.encodings if e.name == k.like_for_like %}{{ return(e) }}{% endfor %}
  {{ return(none) }}
{% endmacro %}

{# Like-for-like sales from which one month says where the market stands: prices of like homes differ by about 8 %,
   so the mean of a hundred is known to 0.8 %. #}
{% macro least_like_sales() %}{{ return(100) }}{% endmacro %}

{# As-of price level: the first of the contract's encodings or columns that is known; 0 without any. #}
{% macro level() %}
  {% set k = contract() %}
  {% if not k.level %}{{ return('0.0') }}{% endif %}
  {% set names = k.encodings | map(attribute='name') | list %}
  {% set parts = [] %}
  {% for name in k.level %}
    {% if name in names %}
      {% do parts.append('case when ' ~ name ~ '_n > 0 then ' ~ name ~ '_value end') %}
    {% else %}
      {% do parts.append(log_of(name)) %}
    {% endif %}
  {% endfor %}
  {% set last = k.level | select('in', names) | list | last %}
  {% if last %}{% do parts.append(last ~ '_value') %}{% endif %}
  {{ return('coalesce(' ~ parts | join(', ') ~ ')') }}
{% endmacro %}

{# Price by the first of these encodings that has history, without smoothing; null where none has. #}
{% macro encoded_price(names) %}
  {% set parts = [] %}
  {% for name in names %}{% do parts.append(name ~ '_mean') %}{% endfor %}
  {% if not parts %}{{ return('cast(null as double)') }}{% endif %}
  {{ return('exp(coalesce(' ~ parts | join(', ') ~ ')' ~ (' + log_size' if contract().size else '') ~ ')') }}
{% endmacro %}

{# Priced observations behind what is known of the place: of the contract's `history`, else of its first persistence. #}
{% macro history_n() %}
  {% set k = contract() %}
  {% set name = k.history or (k.persistence | default([]) | first) %}
  {{ return(name ~ '_n' if name else '0') }}
{% endmacro %}

{# Groups of homes whose recent errors are carried over (ml/recent_errors.py), from wide to narrow; an empty list without. #}
{% macro error_keys() %}
  {% set rule, keys = contract().recent_errors, [] %}
  {% for group in (rule.groups if rule else []) %}{% do keys.append(encoding_key(group)) %}{% endfor %}
  {{ return('cast([' ~ keys | join(', ') ~ '] as varchar[])') }}
{% endmacro %}

{# The model's inputs in the order of Contract.features in ml/contract.py, which a test compares. #}
{% macro feature_columns() %}
  {% set k, out = contract(), [] %}
  {% if k.observed_on %}{% do out.append({'name': 'month_of_year', 'expression': 'month(month)'}) %}{% endif %}
  {% for c in contract_columns('feature') %}
    {% if c.encode is defined and c.encode == 'one_hot' %}
      {% for value in c['values'] %}
        {% do out.append({
            'name': c.name ~ '_is_' ~ slug(value),
            'expression': 'case when ' ~ c.name ~ ' = ' ~ literal(value) ~ ' then 1 when ' ~ c.name ~ ' is not null then 0 end'}) %}
      {% endfor %}
    {% elif c.encode is defined %}
      {% set branches = [] %}
      {% for value in c['values'] %}{% do branches.append('when ' ~ literal(value) ~ ' then ' ~ loop.index) %}{% endfor %}
      {% do out.append({'name': c.name, 'expression': 'case ' ~ c.name ~ ' ' ~ branches | join(' ') ~ ' end'}) %}
    {% else %}
      {% do out.append({'name': c.name, 'expression': c.name}) %}
      {% if c.relative | default(false) %}
        {% do out.append({
            'name': c.name ~ '_to_level',
            'expression': log_of(c.name) ~ ' - price_level'}) %}
      {% endif %}
    {% endif %}
  {% endfor %}
  {% for e in k.encodings %}
    {% set wanted = e.features | default(['value', 'n']) %}
    {% if 'value' in wanted %}
      {% do out.append({'name': e.name ~ '_to_level', 'expression': encoding_to_level(e.name)}) %}
    {% endif %}
    {% for part in ('n', 'frequency') if part in wanted %}
      {% do out.append({'name': e.name ~ '_' ~ part, 'expression': e.name ~ '_' ~ part}) %}
    {% endfor %}
    {% for months in e.changes | default([]) %}
      {% do out.append({
          'name': e.name ~ '_change_' ~ months ~ 'm',
          'expression': e.name ~ '_mean - ' ~ e.name ~ '_' ~ months ~ 'm_ago_mean'}) %}
    {% endfor %}
    {% if e.differs_in %}
      {% do out.append({
          'name': e.name ~ '_' ~ e.differs_in ~ '_difference',
          'expression': e.differs_in ~ ' - ' ~ e.name ~ '_mean_compared'}) %}
    {% endif %}
  {% endfor %}
  {{ return(out) }}
{% endmacro %}

{# Columns in which a row is compared with an encoding's history, each once. #}
{% macro compared_columns() %}
  {{ return(contract().encodings | selectattr('differs_in', 'defined') | selectattr('differs_in') | map(attribute='differs_in') | unique | list) }}
{% endmacro %}

{# Columns besides month and price that encodings read, each once. #}
{% macro encoding_inputs() %}
  {% set k, out = contract(), compared_columns() %}
  {% if k.size and k.size not in out %}{% do out.append(k.size) %}{% endif %}
  {% for e in k.encodings %}
    {% for name in e['keys'] if name not in out %}{% do out.append(name) %}{% endfor %}
  {% endfor %}
  {{ return(out) }}
{% endmacro %}

{# An encoding as a feature: its mean relative to the row's price level, the less the thinner its history, and null
   without any. Where the contract names no level, the smoothed value itself. #}
{% macro encoding_to_level(name) %}
  {% set k = contract() %}
  {% if not k.level %}{{ return(name ~ '_value') }}{% endif %}
  {% set weight = name ~ '_n / (' ~ name ~ '_n + ' ~ (k.smoothing | default(5.0)) ~ ')' %}
  {{ return('case when ' ~ name ~ '_n > 0 then (' ~ name ~ '_mean - price_level) * ' ~ weight ~ ' end') }}
{% endmacro %}
