{#
  Integrity: no two rows share the key, and no part of it is null. `newest` names a column that grows with each load: a
  build then asks only whether keys of what it loaded occur twice, since older rows were tested when they were new.
  A full refresh and `dbt test` ask for all.
#}
{% test unique_key(model, columns, newest=none) %}
{%- set keys, latest = columns | join(', '), newest_load(model, newest) if newest else none %}
with keys as (
    select {{ keys }}
    from {{ model }}
    {%- if latest and newest in columns %}
    where {{ newest }} >= {{ latest }}
    {%- elif latest %}
    semi join (
        select {{ keys }}
        from {{ model }}
        where {{ newest }} >= {{ latest }}
    ) as changed using ({{ keys }})

    union all

    select {{ keys }}
    from {{ model }}
    where {{ newest }} >= {{ latest }} and ({{ columns | join(' is null or ') }} is null)
    {%- endif %}
)

select {{ keys }}, count(*) as n
from keys
group by {{ keys }}
having count(*) > 1 or {{ columns | join(' is null or ') }} is null
{% endtest %}
