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

final as (
    select
        _file,
        _row,
        _loaded_at,
        _batch,
        observation_id,
        observed_on,
        month,
        price,
        area,
        locality,
        case
            when {{ list_size('reasons') }} > 0 then reasons
            when split = 'train' and {{ list_size('price_reasons') }} > 0 then price_reasons
            -- valid by itself, so another row of the same key won
            else {{ list_of(["'superseded'"]) }}
        end as reasons
    from not_current
)

select * from final
