{{ config(materialized='view') }}

-- What holds now for each observation: what the canary serves, else what the champion says, else what was served last.
with predictions as (
    select * from {{ source('predictions', 'predictions') }}
    where kind = 'model' and role <> 'evaluation'
),

model_versions as (
    select
        model_version,
        status
    from {{ source('training', 'model_versions') }}
),

ranked as (
    select
        predictions.*,
        row_number() over (
            partition by predictions.observation_id
            order by
                case
                    when model_versions.status = 'challenger' and predictions.role = 'canary' then 1
                    when model_versions.status = 'champion' then 2
                    else 3
                end asc,
                predictions.scored_at desc,
                predictions.model_version asc
        ) as place
    from predictions
    inner join model_versions on predictions.model_version = model_versions.model_version
    where predictions.role <> 'challenger' or model_versions.status = 'champion'
),

final as (
    select
        observation_id,
        model_version,
        split,
        observed_on,
        month,
        area,
        locality,
        predicted_price,
        scored_at,
        role,
        mode
    from ranked
    where place = 1
)

select * from final
