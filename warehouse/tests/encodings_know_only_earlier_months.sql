-- Integrity: no encoding has seen more rows than there were before its month, and the first month has none.
with seen as (
    select
        encoding,
        month,
        max(n) as n
    from {{ ref('encodings') }}
    where key_value = '__unseen__'
    group by encoding, month
),

priced as (
    select
        month,
        count(*) as n
    from {{ ref('int_observations') }}
    where is_price_valid
    group by month
),

earlier as (
    select
        seen.encoding,
        seen.month,
        seen.n,
        coalesce(sum(priced.n), 0) as possible
    from seen
    left join priced on seen.month > priced.month
    group by seen.encoding, seen.month, seen.n
)

select
    encoding,
    month,
    n,
    possible
from earlier
where n > possible
