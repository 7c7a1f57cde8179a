{{ config(enabled=is_dataset('house_data')) }}

with parsed as (
{{ parse_landed() }}
),

final as (
    select
{{ canonical_columns() }}
    from parsed
)

select * from final
