{#
  Bootstrap in SQL: rows are put into parts by a hash, and samples draw parts. What a sample adds up follows from the
  parts' sums.
#}

{# Parts that a bootstrap draws from. Fewer rows than parts: each row is its own. #}
{% macro bootstrap_parts() %}{{ return(100) }}{% endmacro %}

{# Part of a row, by what tells apart the rows, or the groups of rows, that are drawn. #}
{% macro bootstrap_part(column) -%}
cast(floor({{ bootstrap_parts() }} * {{ hash_share(stable_hash([column])) }}) as integer)
{%- endmacro %}

{# `select` of part, sample and weight: how often each sample drew the part, Poisson with mean 1, the same every time. #}
{% macro bootstrap_weights(samples=200) %}
    select
        part,
        sample,
        case
            {%- for upper in [0.367879, 0.735759, 0.919699, 0.981012, 0.996340] %}
            when share < {{ upper }} then {{ loop.index0 }}
            {%- endfor %}
            else 5
        end as weight
    from (
        select
            part.number as part,
            sample.number as sample,
            {{ hash_share(stable_hash(['part.number', 'sample.number'])) }} as share
        from {{ number_series(0, bootstrap_parts() - 1) }} as part
        cross join {{ number_series(1, samples) }} as sample
    ) as drawn
{%- endmacro %}
