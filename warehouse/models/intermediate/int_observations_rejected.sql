-- Landed rows that do not count, each with at least one reason.
with labelled as (
    select * from {{ ref('int_observations_labelled') }}
),

current_rows as (
    select * from {{ ref('int_observations_current') }}
),

not_current as (
    select labelled.*
    from labelled
    anti join current_rows on labelled._batch = current_rows._batch and labelled._row = current_rows._row
),

unpriced as (
    select observation_id
    from {{ ref('int_observations') }}
    where price is null
),

final as (
    select
        not_current._file,
        not_current._row,
        not_current._loaded_at,
        not_current._batch,
        not_current.observation_id,
        not_current.observed_on,
        not_current.month,
        not_current.price,
        not_current.area,
        not_current.locality,
        case
            when {{ list_size('not_current.reasons') }} > 0 then not_current.reasons
            when not_current.split = 'train' and {{ list_size('not_current.price_reasons') }} > 0
                then not_current.price_reasons
            -- valid by itself, so another row of the same key won
            when not_current.price is not null and unpriced.observation_id is not null
                then {{ list_of(["'superseded'", "'price:taken_back'"]) }}
            else {{ list_of(["'superseded'"]) }}
        end as reasons
    from not_current
    left join unpriced on not_current.observation_id = unpriced.observation_id
)

select * from final
