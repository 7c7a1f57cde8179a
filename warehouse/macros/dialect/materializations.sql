{#
  DuckDB replaces a table or view within a transaction, so that readers of the file see the old one or the new one, and
  a killed process leaves the old one. dbt's own way there, by way of two more names, costs as much processor time as
  all the rest of a small model. Hooks run in the transaction; grants, indexes and comments are nobody's.
#}

{% materialization table, adapter='duckdb' %}
  {% set target = this.incorporate(type='table') %}
  {% do replace_relation(target, create_table_as(False, target, compiled_code)) %}
  {{ return({'relations': [target]}) }}
{% endmaterialization %}

{% materialization view, adapter='duckdb' %}
  {% set target = this.incorporate(type='view') %}
  {% do replace_relation(target, create_view_as(target, compiled_code)) %}
  {{ return({'relations': [target]}) }}
{% endmaterialization %}

{% macro replace_relation(target, creation) %}
  {% set standing = load_cached_relation(target) %}
  {% if standing and standing.type != target.type %}{% do adapter.drop_relation(standing) %}{% endif %}
  {{ run_hooks(pre_hooks) }}
  {% call statement('main') %}
    drop {{ target.type }} if exists {{ target }};
    {{ creation }}
  {% endcall %}
  {{ run_hooks(post_hooks) }}
  {% do adapter.commit() %}
{% endmacro %}
