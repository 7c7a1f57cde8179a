{#
  Staging: from landed text to typed columns, by contract. Text is trimmed, values that stand for missing become
  null, and what could not be read is labelled `column:not_a_number`, never dropped.
#}

{% macro provenance_columns() %}{{ return('_file, _row, _loaded_at, _batch') }}{% endmacro %}

{# Trimmed text of a landed column, null when empty. #}
{% macro landed_text(c) %}
  {% set text = 'trim(' ~ quoted(c.source) ~ ')' %}
  {% if c.strip %}{% set text = 'trim(' ~ text ~ ', ' ~ literal(c.strip) ~ ')' %}{% endif %}
  {{ return("nullif(" ~ text ~ ", '')") }}
{% endmacro %}

{# Splits `missing` into texts and numbers, as SQL literals. #}
{% macro missing_values(c) %}
  {% set texts, numbers = [], [] %}
  {% for value in c.missing | default([]) %}
    {% if value is string %}{% do texts.append(literal(value)) %}{% else %}{% do numbers.append(value | string) %}{% endif %}
  {% endfor %}
  {{ return({'texts': texts, 'numbers': numbers}) }}
{% endmacro %}

{% macro typed_value(c) %}
  {% set type = c.type | default('number') %}
  {% set missing = missing_values(c) %}
  {% set text = landed_text(c) %}
  {% for value in missing.texts %}{% set text = 'nullif(' ~ text ~ ', ' ~ value ~ ')' %}{% endfor %}
  {% if type == 'text' %}{{ return(text) }}{% endif %}
  {% if type == 'date' %}{{ return(try_date(text, c.format)) }}{% endif %}
  {# NaN and Infinity are numbers to a parser and no value to anybody else #}
  {% set number = 'nullif(nullif(nullif(' ~ try_number(text) ~ ", cast('nan' as double)), cast('infinity' as double)), cast('-infinity' as double))" %}
  {{ return(number) }}
{% endmacro %}

{# `select` of all landed columns under the contract's names and types, with `parse_labels`. #}
{% macro parse_landed() %}
    select
        {{ provenance_columns() }},
        {%- for c in contract_columns('landed') %}
        {{ typed_value(c) }} as {{ c.name }},
        {%- endfor %}
        {{ compact_list(parse_labels()) }} as parse_labels
    from {{ source('raw', 'observations') }}
{% endmacro %}

{% macro parse_labels() %}
  {% set labels = [] %}
  {% for c in contract_columns('landed') %}
    {% set type = c.type | default('number') %}
    {% if type != 'text' %}
      {% set problem = ':not_a_date' if type == 'date' else ':not_a_number' %}
      {% do labels.append(
          "case when " ~ typed_value(c) ~ " is null and " ~ landed_text(c) ~ " is not null"
          ~ (" and " ~ landed_text(c) ~ " not in (" ~ missing_values(c).texts | join(', ') ~ ")" if missing_values(c).texts else "")
          ~ " then '" ~ c.name ~ problem ~ "' end") %}
    {% endif %}
    {% if missing_values(c).texts %}
      {% do labels.append(
          "case when " ~ landed_text(c) ~ " in (" ~ missing_values(c).texts | join(', ') ~ ") then '" ~ c.name ~ ":missing' end") %}
    {% endif %}
  {% endfor %}
  {{ return(labels) }}
{% endmacro %}

{# Final columns of every staging model: provenance, canonical columns, then the dataset's own. #}
{% macro canonical_columns() %}
  {%- set k = contract() -%}
        {{ provenance_columns() }},
        {{ stable_hash([literal(dataset())] + observation_key(k.key)) }} as observation_id,
        {{ k.observed_on if k.observed_on else 'cast(null as date)' }} as observed_on,
        {{ k.price }} as price,
        {{ k.area }} as area,
        {{ k.locality }} as locality,
        parse_labels
        {%- for c in contract_columns() %},
        {{ c.name }}
        {%- endfor %}
{% endmacro %}

{% macro observation_key(key) %}
  {% set parts = [] %}
  {% for name in key %}{% do parts.append("coalesce(cast(" ~ name ~ " as varchar), '')") %}{% endfor %}
  {{ return(parts) }}
{% endmacro %}
