{#
  Staging: from landed text to typed columns, by contract. Text is trimmed, values that stand for missing become
  null, and what could not be read is labelled `column:not_a_number`, never dropped.
#}

{% macro provenance_columns() %}{{ return('_file, _row, _loaded_at, _batch') }}{% endmacro %}

{# Landed text, null when empty; numbers need no trimming, because the cast ignores white space. #}
{% macro landed_text(c) %}
  {% set text = 'trim(' ~ composed(quoted(c.source)) ~ ')' %}
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
  {% if type == 'number' %}{{ return(try_number(quoted(c.source))) }}{% endif %}
  {% set text = landed_text(c) %}
  {% for value in missing_values(c).texts %}{% set text = 'nullif(' ~ text ~ ', ' ~ value ~ ')' %}{% endfor %}
  {{ return(try_date(text, c.format) if type == 'date' else text) }}
{% endmacro %}

{# All landed columns under the contract's names and types, with `parse_labels`. #}
{% macro parse_landed() %}
    select
        *,
        {{ labels_of(parse_problems()) }} as parse_labels
    from (
        select
            {{ provenance_columns() }}
            {%- for c in contract_columns('landed') %},
            {{ typed_value(c) }} as {{ c.name }},
            {{ quoted(c.source) }} as {{ quoted('landed ' ~ c.name) }}
            {%- endfor %}
        from {{ source('raw', 'observations') }}
    ) as typed
{% endmacro %}

{# What could not be read, and texts that stand for missing, as pairs of condition and label. #}
{% macro parse_problems() %}
  {% set problems = [] %}
  {% for c in contract_columns('landed') %}
    {% set type = c.type | default('number') %}
    {% set landed = 'trim(' ~ quoted('landed ' ~ c.name) ~ ')' %}
    {% set missing = missing_values(c).texts | join(', ') %}
    {% if type != 'text' %}
      {% do problems.append({
          'when': c.name ~ ' is null and ' ~ quoted('landed ' ~ c.name) ~ ' is not null and '
              ~ landed ~ " not in (''" ~ (', ' ~ missing if missing else '') ~ ')',
          'label': c.name ~ (':not_a_date' if type == 'date' else ':not_a_number')}) %}
    {% endif %}
    {% if missing %}
      {% do problems.append({'when': landed ~ ' in (' ~ missing ~ ')', 'label': c.name ~ ':missing'}) %}
    {% endif %}
  {% endfor %}
  {{ return(problems) }}
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
