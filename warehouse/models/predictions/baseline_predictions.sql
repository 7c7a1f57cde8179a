{{ config(materialized='view') }}

-- What one would have said without a model. Nothing is fitted here: the median comes from the version's training
-- window, the other two are as-of columns of the features.
with model_predictions as (
    select * from {{ source('predictions', 'predictions') }}
    where kind = 'model'
),

model_versions as (
    select * from {{ source('training', 'model_versions') }}
),

observations as (
    select * from {{ ref('training_dataset') }}
    where split <> 'train'
),

training_median as (
    select
        predicted.observation_id,
        'median_' || predicted.model_version as model_version,
        predicted.split,
        predicted.observed_on,
        predicted.month,
        predicted.area,
        predicted.locality,
        model_versions.training_median_price as predicted_price,
        predicted.scored_at,
        predicted.run_id,
        predicted.mode
    from model_predictions as predicted
    inner join model_versions on predicted.model_version = model_versions.model_version
    where model_versions.training_median_price is not null
),

as_of as (
    {%- for name, price in [('persistence', 'persistence_price'), ('last_year', 'last_year_price')] %}
    select
        observation_id,
        '{{ name }}' as model_version,
        split,
        observed_on,
        month,
        area,
        locality,
        {{ price }} as predicted_price,
        -- no run made it: it follows from what was known in the month
        cast(null as timestamp) as scored_at,
        cast(null as varchar) as run_id,
        'batch' as mode
    from observations
    where {{ price }} is not null
    {{ 'union all' if not loop.last }}
    {%- endfor %}
),

together as (
    select * from training_median
    union all
    select * from as_of
),

final as (
    select
        observation_id,
        model_version,
        'baseline' as kind,
        split,
        observed_on,
        month,
        area,
        locality,
        predicted_price,
        scored_at,
        run_id,
        mode
    from together
)

select * from final
