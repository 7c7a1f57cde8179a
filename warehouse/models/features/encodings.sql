{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    pre_hook="{{ forget_months_to_build() }}"
) }}

{%- set k = contract() %}
{%- set unseen = "'__unseen__'" %}
{%- set changed = changed_from() if execute and is_incremental() %}

-- Each month's priced rows are fanned out to the later months in which they count as history, then added up: a
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
{%- if k.encodings | selectattr('indexed', 'defined') | selectattr('indexed') | list %},

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
{%- endif %}
{%- for key_set in encoding_key_sets() %},

{{ key_set.name }}_monthly as (
    select
        {{ key_set.key }} as key_value,
        month,
        count(*) as n,
        sum(micro_log_price) as micro_log_price
        {%- for name in compared_columns() %},
        sum(micro_{{ name }}) as micro_{{ name }},
        count(micro_{{ name }}) as n_{{ name }}
        {%- endfor %}
    from history
    where micro_log_price is not null
    group by 1, 2
)
{%- endfor %}
{%- for e in k.encodings %}
{%- set months = e.months_back %}
{%- set compared = ['source.micro_' ~ e.differs_in, 'source.n_' ~ e.differs_in] if e.differs_in else ['cast(null as bigint)', 'cast(null as bigint)'] %},

{{ e.name }}_sums as (
    {%- if months[0] == months[1] and not e.indexed %}
    select
        source.key_value,
        {{ add_months('source.month', months[0]) }} as month,
        source.n,
        source.micro_log_price,
        {{ compared[0] }} as micro_compared,
        {{ compared[1] }} as n_compared
    from {{ encoding_key_set(e) }}_monthly as source
    {%- else %}
    select
        source.key_value,
        {{ add_months('source.month', 'back.number') }} as month,
        sum(source.n) as n,
        {%- if e.indexed %}
        -- each month relative to its own market, then brought to the market as it is known
        sum(source.micro_log_price + source.n * coalesce(market_as_of.micro_index - market.micro_index, 0)) as micro_log_price,
        {%- else %}
        sum(source.micro_log_price) as micro_log_price,
        {%- endif %}
        sum({{ compared[0] }}) as micro_compared,
        sum({{ compared[1] }}) as n_compared
    from {{ encoding_key_set(e) }}_monthly as source
    cross join {{ number_series(months[0], months[1]) }} as back
    {%- if e.indexed %}
    inner join market on source.month = market.month
    left join market_as_of on market_as_of.month = {{ add_months('source.month', 'back.number') }}
    {%- endif %}
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

wanted as (
    select sums.*
    from sums
    inner join last_month on sums.month <= last_month.month
    where {{ from_month('sums.month', changed) }}
),

overall as (
    select encoding, month, sum(n) as n, sum(micro_log_price) as micro_log_price
    from wanted
    group by 1, 2
),

encoded as (
    select
        wanted.encoding,
        wanted.key_value,
        wanted.month,
        wanted.n,
        wanted.micro_log_price / 1e6 / wanted.n as mean_log_price,
        (wanted.micro_log_price / 1e6 + {{ k.smoothing | default(5.0) }} * (overall.micro_log_price / 1e6 / overall.n))
        / (wanted.n + {{ k.smoothing | default(5.0) }}) as smoothed_log_price,
        wanted.n / overall.n as frequency,
        wanted.micro_compared / 1e6 / nullif(wanted.n_compared, 0) as mean_compared
    from wanted
    inner join overall on wanted.encoding = overall.encoding and wanted.month = overall.month

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
