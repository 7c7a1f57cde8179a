{#
  The dataset contract for Jinja: the same YAML block that ml/contract.py validates. What a contract means in
  SQL is written in parse.sql, checks.sql and encodings.sql; this file only reads it.
#}

{% macro dataset() %}{{ return(env_var('HOUSING_DATASET', 'housets')) }}{% endmacro %}

{% macro is_dataset(name) %}{{ return(dataset() == name) }}{% endmacro %}

{% macro staging_model() %}{{ return('stg_' ~ dataset() ~ '__observations') }}{% endmacro %}

{% macro contract() %}
  {# dbt parses models before the graph is known; the references do not depend on the contract #}
  {% if not execute %}
    {{ return({'columns': [], 'encodings': [], 'level': [], 'persistence': [], 'key': [], 'split': {}, 'observed_on': none}) }}
  {% endif %}
  {% set node = graph.nodes.get('model.housing.' ~ staging_model()) %}
  {% if not node %}
    {{ exceptions.raise_compiler_error(
        "unknown dataset '" ~ dataset() ~ "': no enabled model " ~ staging_model()
        ~ "; set HOUSING_DATASET to a folder of warehouse/models/staging") }}
  {% endif %}
  {{ return(node.config.meta.contract) }}
{% endmacro %}

{# Columns of a role or kind, as a list of the contract's column blocks. #}
{% macro contract_columns(kind='all') %}
  {% set found = [] %}
  {% for c in contract().columns %}
    {% set type = c.type | default('number') %}
    {% set role = c.role | default('feature') %}
    {% set feature = role == 'feature' and type != 'date' and (type == 'number' or c.encode is defined) %}
    {% if kind == 'all'
        or (kind == 'landed' and c.source is defined)
        or (kind == 'feature' and feature)
        or (kind == 'price' and role == 'price') %}
      {% do found.append(c) %}
    {% endif %}
  {% endfor %}
  {{ return(found) }}
{% endmacro %}

{% macro slug(value) %}
  {{ return(modules.re.sub('[^a-z0-9]', '_', value | lower)) }}
{% endmacro %}

{% macro literal(value) %}
  {{ return("'" ~ (value | string | replace("'", "''")) ~ "'") }}
{% endmacro %}

{% macro require_landed_rows() %}
  {% if execute and flags.WHICH in ('run', 'build', 'test') %}
    {% set found = adapter.get_relation(database=target.database, schema='raw', identifier='observations') %}
    {% if not found %}
      {{ exceptions.raise_compiler_error(
          "nothing has landed for dataset '" ~ dataset() ~ "': run `housing ingest PATH` first, "
          ~ "or set HOUSING_HOME and HOUSING_DATASET to where it did") }}
    {% endif %}
  {% endif %}
{% endmacro %}
