{#
  Incremental models: what a new load touches is rebuilt, everything else stays. A rebuilt month depends only on
  rows that stand in the warehouse, so the result equals a full refresh row for row.
#}

{# First month touched by loads that this model has not seen, as a date literal; none when nothing is new, or everything. #}
{% macro changed_from() %}
  {% if not (execute and is_incremental()) %}{{ return(none) }}{% endif %}
  {% set labelled = ref('int_observations_labelled') %}
  {% set found = run_query(
      "select cast(min(month) as varchar) from " ~ labelled ~ " where observation_id in ("
      ~ "select observation_id from " ~ labelled ~ " where _batch > ("
      ~ "select coalesce(max(built_through_batch), -1) from " ~ this ~ "))").columns[0].values()[0] %}
  {{ return("date '" ~ found ~ "'" if found else none) }}
{% endmacro %}

{# The same for what knows earlier months only: the first month after a touched one, or after the last that stands. #}
{% macro changed_after() %}
  {% set changed = changed_from() %}
  {% if changed is none %}{{ return(none) }}{% endif %}
  {% set first = add_months("least(" ~ changed ~ ", (select max(month) from " ~ this ~ "))", 1) %}
  {{ return("date '" ~ run_query("select cast(" ~ first ~ " as varchar)").columns[0].values()[0] ~ "'") }}
{% endmacro %}

{# Condition on a month for rows to be built in this run. The model is rendered before anything is deleted. #}
{% macro from_month(column, changed) %}
  {% if not (execute and is_incremental()) %}{{ return('true') }}{% endif %}
  {{ return(column ~ ' >= ' ~ changed if changed else 'false') }}
{% endmacro %}

{# Condition on `month` for the rows that the longest encoding reads for the months to be built. #}
{% macro months_of_history(changed) %}
  {{ return(from_month('month', add_months(changed, '-' ~ longest_reach()) if changed)) }}
{% endmacro %}

{# Pre-hook, in the model's transaction: what will be built again is forgotten first. #}
{% macro forget_from(changed) %}
  {% if execute and is_incremental() %}delete from {{ this }} where {{ from_month('month', changed) }}{% endif %}
{% endmacro %}

{# Highest load that stands in the labelled observations. #}
{% macro latest_batch() %}(select coalesce(max(_batch), -1) from {{ ref('int_observations_labelled') }}){% endmacro %}

{#
  From which value of a column on rows are new to this build, as a literal; none where a build finds no older rows, or
  asks for all. A run may load several files, each of them a batch: `_batch` begins with the first that no features
  know, or with the last load. What the list of files knows is not asked of the model.
#}
{% macro newest_load(model, newest) %}
  {% if not execute or flags.WHICH != 'build' or flags.FULL_REFRESH %}{{ return(none) }}{% endif %}
  {% set loads = api.Relation.create(database=target.database, schema='raw', identifier='files') ~ " where status = 'loaded'" %}
  {% if newest == '_batch' %}
    {# no ref: the test of a model need not wait for what is built of it #}
    {% set features = api.Relation.create(database=target.database, schema='features', identifier='features') %}
    {% if not load_relation(features) %}{{ return(none) }}{% endif %}
    {% set first, last = 'min(batch)', 'least(max(batch), 1 + (select max(built_through_batch) from ' ~ features ~ '))' %}
  {% elif newest == 'landed_at' %}
    {% set first, last = 'min(loaded_at)', 'max(loaded_at)' %}
  {% else %}
    {% set first, last, loads = 'min(' ~ newest ~ ')', 'max(' ~ newest ~ ')', model %}
  {% endif %}
  {% set both = 'cast(' ~ first ~ ' as varchar), cast(' ~ last ~ ' as varchar)' %}
  {% set first, last = run_query('select ' ~ both ~ ' from ' ~ loads).rows[0].values() %}
  {{ return(literal(last) if first != last else none) }}
{% endmacro %}

{# Highest value of a column that stands in a relation, as a literal. #}
{% macro latest_value(relation, column) %}
  {{ return(run_query("select coalesce(max(" ~ column ~ "), -1) from " ~ relation).columns[0].values()[0]) }}
{% endmacro %}

{#
  Pre-hook, in the model's transaction: months whose rows are not those that a select has now are forgotten. Compared is
  what stands with what would be built, so that whatever made them differ, the result equals a full refresh.
#}
{% macro forget_months_unlike(now) %}
  {% if execute and is_incremental() %}
    delete from {{ this }} where month in (
        select coalesce(now.month, standing.month)
        from ({{ months_of(now) }}) as now
        full outer join ({{ months_of('select * from ' ~ this) }}) as standing on now.month = standing.month
        where now.n is distinct from standing.n or now.fingerprint is distinct from standing.fingerprint
    )
  {% endif %}
{% endmacro %}

{# Select: each month of a select with a fingerprint of its rows. #}
{% macro months_of(rows) -%}
    {%- set columns = adapter.get_columns_in_relation(this) | map(attribute='name') | list -%}
    select month, count(*) as n, {{ content_fingerprint(columns) }} as fingerprint
    from ({{ rows }}) as found
    group by month
{%- endmacro %}

{# Condition on `month`: the model has no rows of it. #}
{% macro missing_months() %}
  {{ return('month not in (select month from ' ~ this ~ ')' if execute and is_incremental() else 'true') }}
{% endmacro %}
