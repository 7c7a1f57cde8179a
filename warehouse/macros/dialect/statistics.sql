{#
  Statistics and date arithmetic that SQL engines spell differently, one macro a difference. DuckDB's spelling is
  the default; a second engine adds its own twins here. Spark's stand in the comments.
#}

{# Middle value; the mean of the middle two when n is even. Spark: percentile(x, 0.5). #}
{% macro median_of(x) %}{{ return(adapter.dispatch('median_of')(x)) }}{% endmacro %}
{% macro default__median_of(x) %}{{ return('median(' ~ x ~ ')') }}{% endmacro %}

{# List of quantiles, linear between order statistics as numpy.quantile. Spark: percentile(x, array(...)). #}
{% macro quantiles_of(x, shares) %}{{ return(adapter.dispatch('quantiles_of')(x, shares)) }}{% endmacro %}
{% macro default__quantiles_of(x, shares) %}{{ return('quantile_cont(' ~ x ~ ', [' ~ shares | join(', ') ~ '])') }}{% endmacro %}

{# Element of a list, counted from 1. Spark: element_at(list, i). #}
{% macro list_item(list, i) %}{{ return(adapter.dispatch('list_item')(list, i)) }}{% endmacro %}
{% macro default__list_item(list, i) %}{{ return(list ~ '[' ~ i ~ ']') }}{% endmacro %}

{# Whole days from one date or timestamp to a later one, negative the other way round. Spark: datediff(b, a). #}
{% macro days_between(a, b) %}{{ return(adapter.dispatch('days_between')(a, b)) }}{% endmacro %}
{% macro default__days_between(a, b) %}{{ return("date_diff('day', cast(" ~ a ~ " as date), cast(" ~ b ~ " as date))") }}{% endmacro %}

{# One row an element, in a select list. Spark: explode(list). #}
{% macro each_element_of(list) %}{{ return(adapter.dispatch('each_element_of')(list)) }}{% endmacro %}
{% macro default__each_element_of(list) %}{{ return('unnest(' ~ list ~ ')') }}{% endmacro %}

{#
  Aggregate: one text for the content of a set of distinct rows, whatever their order. Hashed twice, because DuckDB's hash
  of several columns ends in a xor with that of the last: a value that an even number of rows share would cancel out, and
  two rows could swap theirs unseen. Spark: bit_xor(xxhash64(...)).
#}
{% macro content_fingerprint(columns) %}{{ return(adapter.dispatch('content_fingerprint')(columns)) }}{% endmacro %}
{% macro default__content_fingerprint(columns) %}{{ return('cast(bit_xor(hash(hash(' ~ columns | join(', ') ~ '))) as varchar)') }}{% endmacro %}

{# Aggregate: texts joined in an order. Spark: array_join(transform(array_sort(collect_list(...)))). #}
{% macro joined_text(text, order) %}{{ return(adapter.dispatch('joined_text')(text, order)) }}{% endmacro %}
{% macro default__joined_text(text, order) %}{{ return("string_agg(" ~ text ~ ", ' ' order by " ~ order ~ ")") }}{% endmacro %}

{# Select list: columns of a row as rows of a label and a value, nulls included. Spark: stack(n, label, column, ...). #}
{% macro unpivoted(labels, columns, label, value) %}{{ return(adapter.dispatch('unpivoted')(labels, columns, label, value)) }}{% endmacro %}
{% macro default__unpivoted(labels, columns, label, value) -%}
        unnest([{{ labels | join(', ') }}]) as {{ label }},
        unnest([
            {{ columns | join(',\n            ') }}
        ]) as {{ value }}
{%- endmacro %}
