{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    pre_hook="{{ forget_from(changed_from()) }}"
) }}

{%- set like = like_for_like() %}
{%- set changed = changed_from() %}
{%- set longest = like['months_back'][1] if like else 0 %}

-- What is sold differs from month to month, so a mean price tells of the mix as much as of the market. A sale is
-- therefore taken relative to what its like was paid above the market in the months before. Logarithms are added as
-- whole millionths, so that the sums are exact and an increment equals a full refresh bit for bit.
with priced as (
    select
        month,
        {{ encoding_key(like) if like else "'all'" }} as key_value,
        cast(round({{ log_price() if execute else '0' }} * 1000000) as bigint) as micro_log_price
    from {{ ref('int_observations') }}
    where is_price_valid and {{ from_month('month', add_months(changed, '-' ~ longest) if changed) }}
),

monthly as (
    select
        key_value,
        month,
        count(*) as n,
        cast(sum(micro_log_price) as bigint) as micro_log_price
    from priced
    where micro_log_price is not null
    group by 1, 2
),

market as (
    select
        month,
        sum(n) as n,
        cast(round(sum(micro_log_price) / sum(n)) as bigint) as micro_mean
    from monthly
    group by 1
),
{%- if like %}

-- which month counts as history of which
reach as (
    select
        earlier.month as source_month,
        earlier.micro_mean,
        market.month
    from market
    cross join {{ number_series(like['months_back'][0], like['months_back'][1]) }} as back
    inner join market as earlier on earlier.month = {{ add_months('market.month', '-back.number') }}
    where {{ from_month('market.month', changed) }}
),

premiums as (
    select
        monthly.key_value,
        reach.month,
        cast(round(sum(monthly.micro_log_price - monthly.n * reach.micro_mean) / sum(monthly.n)) as bigint) as micro_premium
    from monthly
    inner join reach on monthly.month = reach.source_month
    group by 1, 2
),

like_for_like as (
    select
        monthly.month,
        sum(monthly.n) as n,
        cast(
            round(sum(monthly.micro_log_price - monthly.n * premiums.micro_premium) / sum(monthly.n)) as bigint
        ) as micro_index
    from monthly
    inner join premiums on monthly.key_value = premiums.key_value and monthly.month = premiums.month
    group by 1
),
{%- endif %}

final as (
    select
        market.month,
        cast(market.n as bigint) as n,
        {%- if like %}
        cast(coalesce(like_for_like.n, 0) as bigint) as n_like_for_like,
        market.micro_mean as micro_mean_log_price,
        coalesce(like_for_like.micro_index, market.micro_mean) as micro_index,
        {%- else %}
        cast(0 as bigint) as n_like_for_like,
        market.micro_mean as micro_mean_log_price,
        market.micro_mean as micro_index,
        {%- endif %}
        cast({{ latest_batch() }} as bigint) as built_through_batch
    from market
    {%- if like %}
    left join like_for_like on market.month = like_for_like.month
    {%- endif %}
    where {{ from_month('market.month', changed) }}
)

select * from final
