-- Accepted observations, one per key.
with labelled as (
    select * from {{ ref('int_observations_labelled') }}
),

current_rows as (
    select * from {{ ref('int_observations_current') }}
),

final as (
    select labelled.*
    from labelled
    inner join current_rows on labelled._batch = current_rows._batch and labelled._row = current_rows._row
)

select * from final
