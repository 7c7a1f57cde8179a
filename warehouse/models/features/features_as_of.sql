{%- set k = contract() %}
{%- set names = k.encodings | map(attribute='name') | list %}
-- The only definition of a feature. A view: training reads what it gave, the bundle runs this very text.
with observations as (
    select * from {{ ref('int_observations') }}
),

encodings as {{ inlined() }} (
    select * from {{ ref('encodings') }}
),

-- a month later than any history uses the latest history there is
latest as (
    select max(month) as month from encodings
),

unseen as (
    select
        month
        {%- for name in names %},
        max(case when encoding = '{{ name }}' then smoothed_log_price end) as {{ name }}_unseen
        {%- endfor %}
    from encodings
    where key_value = '__unseen__'
    group by month
),

keyed as (
    select
        observations.*,
        coalesce(least(observations.month, latest.month), observations.month) as encoding_month
    from observations
    cross join latest
),

encoded as (
    select
        keyed.*
        {%- for name in names %},
        coalesce({{ name }}.smoothed_log_price, unseen.{{ name }}_unseen) as {{ name }}_value,
        {{ name }}.mean_log_price as {{ name }}_mean,
        coalesce({{ name }}.n, 0) as {{ name }}_n,
        coalesce({{ name }}.frequency, 0) as {{ name }}_frequency,
        {{ name }}.mean_compared as {{ name }}_mean_compared
        {%- endfor %}
        {%- for e in k.encodings %}
        {%- for months in e.changes | default([]) %},
        {{ e.name }}_{{ months }}m_ago.mean_log_price as {{ e.name }}_{{ months }}m_ago_mean
        {%- endfor %}
        {%- endfor %}
    from keyed
    left join unseen on keyed.encoding_month = unseen.month
    {%- for e in k.encodings %}
    left join encodings as {{ e.name }}
        on {{ e.name }}.encoding = '{{ e.name }}'
        and {{ e.name }}.month = keyed.encoding_month
        and {{ e.name }}.key_value = {{ encoding_key(e) }}
    {%- for months in e.changes | default([]) %}
    left join encodings as {{ e.name }}_{{ months }}m_ago
        on {{ e.name }}_{{ months }}m_ago.encoding = '{{ e.name }}'
        and {{ e.name }}_{{ months }}m_ago.month = {{ add_months('keyed.encoding_month', '-' ~ months) }}
        and {{ e.name }}_{{ months }}m_ago.key_value = {{ encoding_key(e) }}
    {%- endfor %}
    {%- endfor %}
),

levelled as (
    select
        *,
        {{ level() }} as price_level,
        {{ log_of(k.size) if k.size else '0.0' }} as log_size
    from encoded
),

final as (
    select
        _batch,
        _row,
        observation_id,
        observed_on,
        month,
        area,
        locality,
        price,
        is_price_valid,
        split,
        cast({{ 'price_level + log_size' if k.level else '0.0' }} as double) as target_offset,
        {{ encoded_price(k.persistence | default([])) }} as persistence_price,
        {{ encoded_price([k.last_year] if k.last_year else []) }} as last_year_price,
        cast({{ history_n() }} as bigint) as history_n,
        {{ error_keys() }} as error_keys
        {%- for feature in feature_columns() %},
        cast({{ feature.expression }} as double) as {{ feature.name }}
        {%- endfor %}
    from levelled
)

select * from final
