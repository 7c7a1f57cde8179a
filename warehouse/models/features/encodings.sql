{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    pre_hook="{{ forget_from(changed_after()) }}"
) }}

{%- set k = contract() %}
{%- set unseen = "'__unseen__'" %}
{%- set changed = changed_after() %}
{%- set indexed = k.encodings | selectattr('indexed', 'defined') | selectattr('indexed') | list | length > 0 %}

-- Each month's priced rows are added up by key, then fanned out to the later months in which they count as history: a
-- row never reaches its own month. Logarithms are added as whole millionths, so that the sums are exact and an
-- increment equals a full refresh bit for bit.
-- depends_on: {{ ref('market_index') }}
with observations as (
    select
        month,
        price,
        is_price_valid
        {%- for name in encoding_inputs() %},
        {{ name }}
        {%- endfor %}
    from {{ ref('int_observations') }}
),

last_month as (
    select {{ add_months('max(month)', 1) }} as month from observations
),

history as (
    select
        *,
        cast(round({{ log_price() if execute else '0' }} * 1000000) as bigint) as micro_log_price
        {%- for name in compared_columns() %},
        cast(round({{ name }} * 1000000) as bigint) as micro_{{ name }}
        {%- endfor %}
    from observations
    where is_price_valid and {{ months_of_history(changed) }}
)
{%- if indexed %},

market as (
    select * from {{ ref('market_index') }}
),

-- last month's market alone where enough of its like is sold each month, else that of three months
market_as_of as (
    select
        {{ add_months('market.month', 'back.number') }} as month,
        cast(round(coalesce(
            sum(case when back.number = 1 and market.n_like_for_like >= {{ least_like_sales() }} then market.micro_index end),
            sum(market.n * market.micro_index) / sum(market.n)
        )) as bigint) as micro_index
    from market
    cross join {{ number_series(1, 3) }} as back
    group by 1
)
{%- endif %},

-- which month counts as history of which, and how far the market moved between them
reach as (
    select
        months.month as source_month,
        back.number as months_back,
        {{ add_months('months.month', 'back.number') }} as month
        {%- if indexed %},
        coalesce(market_as_of.micro_index - market.micro_index, 0) as micro_move
        {%- endif %}
    from (select distinct month from history) as months
    cross join {{ number_series(1, longest_reach()) }} as back
    inner join last_month on {{ add_months('months.month', 'back.number') }} <= last_month.month
    {%- if indexed %}
    inner join market on months.month = market.month
    left join market_as_of on market_as_of.month = {{ add_months('months.month', 'back.number') }}
    {%- endif %}
    where {{ from_month(add_months('months.month', 'back.number'), changed) }}
)
{%- for key_set, key in encoding_key_sets().items() %},

{{ key_set }}_monthly as (
    select
        {{ key }} as key_value,
        month,
        count(*) as n,
        cast(sum(micro_log_price) as bigint) as micro_log_price
        {%- for name in compared_columns() %},
        cast(sum(micro_{{ name }}) as bigint) as micro_{{ name }},
        count(micro_{{ name }}) as n_{{ name }}
        {%- endfor %}
    from history
    where micro_log_price is not null
    group by 1, 2
)
{%- endfor %}
{%- for e in k.encodings %}
{%- set months = e.months_back %}
{%- set compared = ['micro_' ~ e.differs_in, 'n_' ~ e.differs_in] if e.differs_in else [] %}
{#- each month relative to its own market, then brought to the market as it is known #}
{%- set micro_log_price = 'source.micro_log_price' ~ (' + source.n * reach.micro_move' if e.indexed else '') %},

{{ e.name }}_sums as (
    {%- if months[0] == months[1] %}
    select
        source.key_value,
        reach.month,
        source.n,
        {{ micro_log_price }} as micro_log_price,
        {{ 'source.' ~ compared[0] if compared else 'cast(null as bigint)' }} as micro_compared,
        {{ 'source.' ~ compared[1] if compared else 'cast(null as bigint)' }} as n_compared
    from {{ encoding_key_set(e) }}_monthly as source
    inner join reach on source.month = reach.source_month and reach.months_back = {{ months[0] }}
    {%- else %}
    select
        source.key_value,
        reach.month,
        cast(sum(source.n) as bigint) as n,
        cast(sum({{ micro_log_price }}) as bigint) as micro_log_price,
        {{ 'cast(sum(source.' ~ compared[0] ~ ') as bigint)' if compared else 'cast(null as bigint)' }} as micro_compared,
        {{ 'cast(sum(source.' ~ compared[1] ~ ') as bigint)' if compared else 'cast(null as bigint)' }} as n_compared
    from {{ encoding_key_set(e) }}_monthly as source
    inner join reach on source.month = reach.source_month and reach.months_back between {{ months[0] }} and {{ months[1] }}
    group by 1, 2
    {%- endif %}
)
{%- endfor %},

sums as (
    {%- for e in k.encodings %}
    select '{{ e.name }}' as encoding, * from {{ e.name }}_sums
    {{ 'union all' if not loop.last }}
    {%- else %}
    select
        cast(null as varchar) as encoding, cast(null as varchar) as key_value, cast(null as date) as month,
        0 as n, 0 as micro_log_price, 0 as micro_compared, 0 as n_compared
    where false
    {%- endfor %}
),

overall as (
    select encoding, month, sum(n) as n, sum(micro_log_price) as micro_log_price
    from sums
    group by 1, 2
),

encoded as (
    select
        sums.encoding,
        sums.key_value,
        sums.month,
        sums.n,
        sums.micro_log_price / 1e6 / sums.n as mean_log_price,
        (sums.micro_log_price / 1e6 + {{ k.smoothing | default(5.0) }} * (overall.micro_log_price / 1e6 / overall.n))
        / (sums.n + {{ k.smoothing | default(5.0) }}) as smoothed_log_price,
        sums.n / overall.n as frequency,
        sums.micro_compared / 1e6 / nullif(sums.n_compared, 0) as mean_compared
    from sums
    inner join overall on sums.encoding = overall.encoding and sums.month = overall.month

    union all

    select encoding, {{ unseen }}, month, n, micro_log_price / 1e6 / n, micro_log_price / 1e6 / n, 0.0, cast(null as double)
    from overall
),

final as (
    select
        cast(encoding as varchar) as encoding,
        cast(key_value as varchar) as key_value,
        month,
        cast(n as bigint) as n,
        cast(mean_log_price as double) as mean_log_price,
        cast(smoothed_log_price as double) as smoothed_log_price,
        cast(frequency as double) as frequency,
        cast(mean_compared as double) as mean_compared,
        cast({{ latest_batch() }} as bigint) as built_through_batch
    from encoded
)

select * from final
