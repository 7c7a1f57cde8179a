{{ config(
    materialized='incremental', incremental_strategy='append', on_schema_change='fail',
    pre_hook="{{ forget_months_unlike(matched_predictions()) }}",
) }}

-- Predictions beside the price that came, never a simulated one. Stored, because all of monitoring reads it and the
-- snapshot compares it month by month; of the months that hold what they should nothing is written again.
{{ matched_predictions(missing_months()) }}
