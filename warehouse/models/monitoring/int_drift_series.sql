{{ config(materialized='table') }}

-- Months whose drift is measured, with a fingerprint of what it depends on. Features of a row change only with their
-- load number, so that past months cost a hash of a few columns.
with versions as (
    select
        model_version,
        trained_through
    from {{ source('training', 'model_versions') }}
),

predictions as (
    select * from {{ source('predictions', 'predictions') }}
    where kind = 'model' and split <> 'eval' and mode = 'batch'
),

features as (
    select
        observation_id,
        month,
        split,
        price,
        is_price_valid,
        built_through_batch
    from {{ ref('features') }}
),

scored as (
    select
        predictions.model_version,
        features.month,
        'scored' as part,
        count(*) as n,
        {{ content_fingerprint([
            'features.observation_id', 'predictions.predicted_price', 'features.price', 'features.is_price_valid',
            'features.built_through_batch',
        ]) }} as content
    from predictions
    inner join versions on predictions.model_version = versions.model_version
    inner join features on predictions.observation_id = features.observation_id
    group by predictions.model_version, features.month
),

-- the last months that a version learned from: their own distance from the whole window is what is usual
training_months as (
    select
        versions.model_version,
        features.month,
        'training' as part,
        count(*) as n,
        {{ content_fingerprint([
            'features.observation_id', 'features.price', 'features.is_price_valid', 'features.built_through_batch',
        ]) }} as content
    from features
    inner join versions on {{ is_in_training_window() }}
    {%- if contract().observed_on %}
    where features.month > {{ add_months('versions.trained_through', '-' ~ usual_months()) }}
    {%- endif %}
    group by versions.model_version, features.month
),

together as (
    select * from scored
    union all
    select * from training_months
),

final as (
    select
        model_version,
        month,
        part,
        n,
        concat_ws(' ', model_version, month, part, content) as fingerprint
    from together
)

select * from final
