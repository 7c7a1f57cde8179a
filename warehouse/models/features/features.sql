{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    pre_hook="{{ forget_months_to_build() }}"
) }}

-- What features_as_of gave for each observation, stored.
select
    *,
    cast({{ latest_batch() }} as bigint) as built_through_batch
from {{ ref('features_as_of') }}
where {{ months_to_build() }}
