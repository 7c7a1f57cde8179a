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
    select *, cast(round({{ log_price() if execute else '0' }} * 1000000) as bigint) as micro_log_price
    from observations
    where is_price_valid and {{ months_of_history(changed) }}
)
{%- for key_set in encoding_key_sets() %},

{{ key_set.name }}_monthly as (
    select {{ encoding_key(key_set['keys']) }} as key_value, month, count(*) as n, sum(micro_log_price) as micro_log_price
    from history
    where micro_log_price is not null
    group by 1, 2
)
{%- endfor %}
{%- for e in k.encodings %},

{{ e.name }}_sums as (
    {%- if e.months_back[0] == e.months_back[1] %}
    select key_value, {{ add_months('month', e.months_back[0]) }} as month, n, micro_log_price
    from {{ encoding_key_set(e['keys']) }}_monthly
    {%- else %}
    select
        source.key_value,
        {{ add_months('source.month', 'back.months_back') }} as month,
        sum(source.n) as n,
        sum(source.micro_log_price) as micro_log_price
    from {{ encoding_key_set(e['keys']) }}_monthly as source
    cross join {{ number_series(e.months_back[0], e.months_back[1]) }} as back
    group by 1, 2
    {%- endif %}
)
{%- endfor %},

sums as (
    {%- for e in k.encodings %}
    select '{{ e.name }}' as encoding, key_value, month, n, micro_log_price from {{ e.name }}_sums
    {{ 'union all' if not loop.last }}
    {%- else %}
    select
        cast(null as varchar) as encoding, cast(null as varchar) as key_value, cast(null as date) as month,
        0 as n, 0 as micro_log_price
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
        wanted.n / overall.n as frequency
    from wanted
    inner join overall on wanted.encoding = overall.encoding and wanted.month = overall.month

    union all

    select encoding, {{ unseen }}, month, n, micro_log_price / 1e6 / n, micro_log_price / 1e6 / n, 0.0
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
        cast({{ latest_batch() }} as bigint) as built_through_batch
    from encoded
)

select * from final
