-- Which months, and which part of the keys, each fold trains, stops and tests on.
with months as (
    select month
    from {{ ref('features') }}
    where split in ('train', 'eval')
    group by month
),

{%- if fold_method() == 'time' %}

windows as (
    {%- for fold in range(1, fold_count() + 1) %}
    {%- set last = loop.last %}
    {%- for window in fold_windows(fold) %}
    select
        {{ fold }} as fold,
        '{{ window.role }}' as role,
        {{ window.from }} as first_month,
        {{ window.to }} as last_month,
        0.0 as share_from,
        1.0 as share_to
    {{ 'union all' if not (last and loop.last) }}
    {%- endfor %}
    {%- endfor %}
),
{%- else %}

windows as (
    {%- set n = fold_count() %}
    {%- for fold in range(1, n + 1) %}
    {%- set last = loop.last %}
    {%- for part in range(n) %}
    select
        {{ fold }} as fold,
        '{{ 'test' if part == fold - 1 else ('eval' if part == fold % n else 'train') }}' as role,
        date '0001-01-01' as first_month,
        date '9999-01-01' as last_month,
        {{ part }} / {{ n }}.0 as share_from,
        {{ part + 1 }} / {{ n }}.0 as share_to
    {{ 'union all' if not (last and loop.last) }}
    {%- endfor %}
    {%- endfor %}
),
{%- endif %}

final as (
    select
        cast(windows.fold as integer) as fold,
        windows.role,
        months.month,
        cast(windows.share_from as double) as share_from,
        cast(windows.share_to as double) as share_to
    from windows
    inner join months on months.month between windows.first_month and windows.last_month
)

select * from final
