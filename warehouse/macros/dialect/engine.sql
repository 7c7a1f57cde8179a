{#
  What differs between SQL engines, one macro a difference. Models call these and stay plain SQL.
  A second engine (Spark through dbt-spark) adds spark__ twins here and nowhere else.
#}

{% macro quoted(name) %}{{ return(adapter.quote(name)) }}{% endmacro %}

{#
  Behind `as`: a CTE that is read many times is not stored first, so that what is asked of it reaches its table. DuckDB
  stored all encodings to make the features of one month. Spark: nothing, it never stores them.
#}
{% macro inlined() %}{{ return(adapter.dispatch('inlined')()) }}{% endmacro %}
{% macro default__inlined() %}{{ return('not materialized') }}{% endmacro %}

{% macro try_number(text) %}{{ return(adapter.dispatch('try_number')(text)) }}{% endmacro %}
{% macro default__try_number(text) %}
  {# NaN and Infinity are numbers to a parser and no value to anybody else #}
  {{ return('case when isfinite(try_cast(' ~ text ~ ' as double)) then try_cast(' ~ text ~ ' as double) end') }}
{% endmacro %}

{% macro try_date(text, format) %}{{ return(adapter.dispatch('try_date')(text, format)) }}{% endmacro %}
{% macro default__try_date(text, format) %}{{ return("cast(try_strptime(" ~ text ~ ", '" ~ format ~ "') as date)") }}{% endmacro %}

{# Text of 32 hex digits, the same on every engine. Parts are joined by a character that no key holds. #}
{% macro stable_hash(parts) %}{{ return(adapter.dispatch('stable_hash')(parts)) }}{% endmacro %}
{% macro default__stable_hash(parts) %}{{ return('md5(concat_ws(chr(31), ' ~ parts | join(', ') ~ '))') }}{% endmacro %}

{# Text with accents composed (Unicode NFC), so that a file of a Mac spells places as others do. Spark: a UDF, it has none. #}
{% macro composed(text) %}{{ return(adapter.dispatch('composed')(text)) }}{% endmacro %}
{% macro default__composed(text) %}{{ return('nfc_normalize(' ~ text ~ ')') }}{% endmacro %}

{# A number in [0, 1) from the first eight digits of a stable_hash. #}
{% macro hash_share(hash) %}{{ return(adapter.dispatch('hash_share')(hash)) }}{% endmacro %}
{% macro default__hash_share(hash) %}{{ return("(cast('0x' || substr(" ~ hash ~ ", 1, 8) as bigint) / 4294967296.0)") }}{% endmacro %}

{# Array of the labels whose condition holds, in order. Few rows have any, so only they build a list. #}
{% macro labels_of(problems) %}{{ return(adapter.dispatch('labels_of')(problems)) }}{% endmacro %}
{% macro default__labels_of(problems) -%}
  {%- if not problems -%}{{ return('cast([] as varchar[])') }}{%- endif -%}
  {%- set cases = [] -%}
  {%- for p in problems -%}
    {%- do cases.append('case when ' ~ p.when ~ " then '" ~ p.label ~ "' end") -%}
  {%- endfor -%}
        case
            when {{ wrapped_conditions(problems) }}
                then list_filter([
                    {{ cases | join(',\n                    ') }}
                ], lambda x: x is not null)
            else cast([] as varchar[])
        end
{%- endmacro %}

{% macro wrapped_conditions(problems) %}
  {% set out = [] %}
  {% for p in problems %}{% do out.append('(' ~ p.when ~ ')') %}{% endfor %}
  {{ return(out | join('\n                or ')) }}
{% endmacro %}

{% macro joined_lists(lists) %}{{ return(adapter.dispatch('joined_lists')(lists)) }}{% endmacro %}
{% macro default__joined_lists(lists) %}{{ return('list_concat(' ~ lists | join(', ') ~ ')') }}{% endmacro %}

{% macro list_size(list) %}{{ return(adapter.dispatch('list_size')(list)) }}{% endmacro %}
{% macro default__list_size(list) %}{{ return('len(' ~ list ~ ')') }}{% endmacro %}

{% macro list_has(list, value) %}{{ return(adapter.dispatch('list_has')(list, value)) }}{% endmacro %}
{% macro default__list_has(list, value) %}{{ return("list_contains(" ~ list ~ ", '" ~ value ~ "')") }}{% endmacro %}

{% macro month_of(date) %}{{ return(adapter.dispatch('month_of')(date)) }}{% endmacro %}
{% macro default__month_of(date) %}{{ return("cast(date_trunc('month', " ~ date ~ ") as date)") }}{% endmacro %}

{% macro add_months(date, months) %}{{ return(adapter.dispatch('add_months')(date, months)) }}{% endmacro %}
{% macro default__add_months(date, months) %}{{ return('cast(' ~ date ~ ' + to_months(cast(' ~ months ~ ' as integer)) as date)') }}{% endmacro %}

{# Whole months from one first of a month to another. #}
{% macro months_between(a, b) %}{{ return(adapter.dispatch('months_between')(a, b)) }}{% endmacro %}
{% macro default__months_between(a, b) %}{{ return("date_diff('month', " ~ a ~ ", " ~ b ~ ")") }}{% endmacro %}

{# Whole numbers from first to last as a relation with the column number. #}
{% macro number_series(first, last) %}{{ return(adapter.dispatch('number_series')(first, last)) }}{% endmacro %}
{% macro default__number_series(first, last) %}{{ return('(select unnest(range(' ~ first ~ ', ' ~ (last + 1) ~ ')) as number)') }}{% endmacro %}

{# The part of a text that matches a group, or null. #}
{% macro regex_group(text, pattern, group) %}{{ return(adapter.dispatch('regex_group')(text, pattern, group)) }}{% endmacro %}
{% macro default__regex_group(text, pattern, group) %}{{ return("nullif(regexp_extract(" ~ text ~ ", '" ~ pattern ~ "', " ~ group ~ "), '')") }}{% endmacro %}

{# First day of a month given as two numbers; null unless both make a month. #}
{% macro first_of_month(year, month) %}{{ return(adapter.dispatch('first_of_month')(year, month)) }}{% endmacro %}
{% macro default__first_of_month(year, month) %}
  {{ return('case when ' ~ month ~ ' between 1 and 12 and ' ~ year ~ ' between 1 and 9999 then make_date(cast(' ~ year ~ ' as integer), cast(' ~ month ~ ' as integer), 1) end') }}
{% endmacro %}

{% macro list_of(values) %}{{ return(adapter.dispatch('list_of')(values)) }}{% endmacro %}
{% macro default__list_of(values) %}{{ return('[' ~ values | join(', ') ~ ']') }}{% endmacro %}
