{{ config(materialized='incremental', incremental_strategy='append', on_schema_change='fail', full_refresh=false) }}

-- What each version predicted for its evaluation window, which it had not learned from, and how it erred there.
with versions as (
    select model_version
    from {{ source('training', 'model_versions') }}
    where {{ is_new_version() }}
),

predictions as (
    select * from {{ source('predictions', 'predictions') }}
    where kind = 'model' and split = 'eval'
),

features as (
    select * from {{ ref('features') }}
),

evaluated as (
    select
        versions.model_version,
        {{ prediction_values()['prediction'] }} as prediction,
        {{ prediction_values()['residual'] }} as residual
    from predictions
    inner join versions on predictions.model_version = versions.model_version
    inner join features on predictions.observation_id = features.observation_id
),

{{ profile_of('evaluated', ['prediction', 'residual'], {'residual': 'residual is not null'}) }}

select * from final
