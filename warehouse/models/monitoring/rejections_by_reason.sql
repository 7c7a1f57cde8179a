-- Why landed rows were rejected, with one row to look at. A row with two reasons counts in both.
with rejected as (
    select * from {{ ref('int_observations_rejected') }}
),

landed as (
    select count(*) as landed from {{ source('raw', 'observations') }}
),

reasons as (
    select
        _batch,
        _file,
        _row,
        {{ each_element_of('reasons') }} as reason
    from rejected
),

ranked as (
    select
        *,
        row_number() over (partition by reason order by _batch, _row) as place
    from reasons
),

final as (
    select
        ranked.reason,
        count(*) as n,
        100.0 * count(*) / max(landed.landed) as share_pct,
        max(case when ranked.place = 1 then ranked._file end) as example_file,
        max(case when ranked.place = 1 then ranked._row end) as example_row
    from ranked
    cross join landed
    group by ranked.reason
)

select * from final
