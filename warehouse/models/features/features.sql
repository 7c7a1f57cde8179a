{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    pre_hook="{{ forget_from(changed_from()) }}"
) }}

-- What features_as_of gave for each observation, stored.
select
    *,
    cast({{ latest_batch() }} as bigint) as built_through_batch
from {{ ref('features_as_of') }}
where {{ from_month('month', changed_from()) }}
