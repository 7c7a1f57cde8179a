{{ config(enabled=is_dataset('hdb')) }}

{%- set months = regex_group('remaining_lease_text', '([0-9]+) month', 1) %}

with parsed as (
{{ parse_landed() }}
),

derived as (
    select
        *,
        -- "10 TO 12" is the eleventh storey, give or take one
        (
            cast({{ regex_group('storey_range', '^([0-9]+) TO ([0-9]+)$', 1) }} as double)
            + cast({{ regex_group('storey_range', '^([0-9]+) TO ([0-9]+)$', 2) }} as double)
        ) / 2 as storey_mid,
        -- "61 years 04 months", "61 years", "61" or "05 months"
        coalesce(
            cast({{ regex_group('remaining_lease_text', '^([0-9]+)( year|$)', 1) }} as double)
            + coalesce(cast({{ months }} as double), 0) / 12,
            cast({{ months }} as double) / 12
        ) as remaining_lease_years
    from parsed
),

final as (
    select
{{ canonical_columns() }}
    from derived
)

select * from final
