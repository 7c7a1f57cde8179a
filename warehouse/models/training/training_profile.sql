{{ config(materialized='incremental', incremental_strategy='append', on_schema_change='fail', full_refresh=false) }}

-- What each version learned from, feature by feature, small enough to compare every later month with.
with versions as (
    select
        model_version,
        trained_through
    from {{ source('training', 'model_versions') }}
    where {{ is_new_version() }}
),

features as (
    select
        *,
        {{ prediction_values()['target'] }} as target
    from {{ ref('features') }}
),

learned_from as (
    select
        versions.model_version,
        {{ qualified('features', feature_names() + ['target']) }}
    from features
    inner join versions on {{ is_in_training_window() }}
),

{{ profile_of('learned_from', feature_names() + ['target']) }}

select * from final
