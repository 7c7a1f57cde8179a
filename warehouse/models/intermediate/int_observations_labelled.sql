{{ config(materialized='incremental', incremental_strategy='append', on_schema_change='append_new_columns') }}

-- Every landed row with its reasons, stored. Loads only ever add rows.
select * from {{ ref('int_observations_checked') }}
{% if is_incremental() %}
where _batch > {{ latest_value(this, '_batch') }}
{% endif %}
