{{ config(enabled=is_dataset('ames')) }}

with parsed as (
{{ parse_landed() }}
),

derived as (
    select
        *,
        {{ first_of_month('year_sold', 'month_number_sold') }} as sold_month,
        basement_sqft + first_floor_sqft + second_floor_sqft as total_sqft,
        overall_qual * (basement_sqft + first_floor_sqft + second_floor_sqft) as quality_sqft,
        coalesce(bsmt_full_bath, 0) + full_bath + 0.5 * (coalesce(bsmt_half_bath, 0) + half_bath) as baths,
        year_sold - year_built as age_years,
        year_sold - year_remod_add as remodelled_years,
        case when year_sold = year_built then 1 when year_built is not null then 0 end as is_new
    from parsed
),

final as (
    select
{{ canonical_columns() }}
    from derived
)

select * from final
