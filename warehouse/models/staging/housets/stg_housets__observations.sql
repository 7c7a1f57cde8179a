{{ config(enabled=is_dataset('housets')) }}

with parsed as (
{{ parse_landed() }}
),

renames as (
    select * from {{ ref('metro_renames') }}
),

metros as (
    -- the official name carries its states: "Boston-Cambridge-Newton, MA-NH"
    select
        trim(split_part(official_name, ',', 1)) as metro_name,
        latitude,
        longitude
    from {{ ref('us_metros') }}
),

named as (
    select
        parsed.* exclude (zipcode),
        -- published as an integer, so New England lost its leading zeros
        lpad(split_part(parsed.zipcode, '.', 1), 5, '0') as zipcode,
        coalesce(renames.metro_name, trim(split_part(parsed.city_full, ',', 1))) as metro_wanted
    from parsed
    left join renames on upper(trim(parsed.city_full)) = upper(renames.published_name)
),

located as (
    select
        named.*,
        coalesce(metros.metro_name, named.metro_wanted) as metro,
        metros.latitude as metro_latitude,
        metros.longitude as metro_longitude
    from named
    left join metros on upper(named.metro_wanted) = upper(metros.metro_name)
),

final as (
    select
{{ canonical_columns() }}
    from located
)

select * from final
