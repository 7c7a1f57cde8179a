{{ config(enabled=is_dataset('ames')) }}

with parsed as (
{{ parse_landed() }}
),

derived as (
    select
        *,
        {{ first_of_month('year_sold', 'month_number_sold') }} as sold_month
    from parsed
),

final as (
    select
{{ canonical_columns() }}
    from derived
)

select * from final
