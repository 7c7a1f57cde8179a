-- Integrity: no encoding has seen more rows than there were before its month, and the first month has none.
with earlier as (
    select
        encodings.encoding,
        encodings.month,
        max(encodings.n) as n,
        (
            select count(*)
            from {{ ref('int_observations') }} as observations
            where observations.month < encodings.month and observations.is_price_valid
        ) as possible
    from {{ ref('encodings') }} as encodings
    where encodings.key_value = '__unseen__'
    group by encodings.encoding, encodings.month
)

select
    encoding,
    month,
    n,
    possible
from earlier
where n > possible
