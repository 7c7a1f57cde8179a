{{ config(materialized='table') }}

-- What versions say of a sample of the rows that they learned from, and what one would have said of the same rows
-- without a model, beside the price. These are no predictions: they tell only how much of the error on other rows is
-- there already on known ones.
with sampled as (
    select * from {{ source('training', 'fitted_values') }}
),

predictions as (
    select
        observation_id,
        model_version
    from {{ source('predictions', 'predictions') }}
),

-- a row that was predicted since, because its date was corrected or somebody asked the API, is a prediction
fitted_values as (
    select sampled.*
    from sampled
    anti join predictions
        on sampled.observation_id = predictions.observation_id and sampled.model_version = predictions.model_version
),

model_versions as (
    select * from {{ source('training', 'model_versions') }}
),

observations as (
    select known.*
    from {{ ref('training_dataset') }} as known
    semi join fitted_values on known.observation_id = fitted_values.observation_id
    where known.split = 'train'
),

actuals as (
    select * from {{ ref('actuals') }}
    where source <> 'simulated'
),

together as (
    select
        observation_id,
        model_version,
        kind,
        month,
        area,
        predicted_price
    from fitted_values
    union all
    select
        fitted_values.observation_id,
        'median_' || fitted_values.model_version as model_version,
        'baseline' as kind,
        fitted_values.month,
        fitted_values.area,
        model_versions.training_median_price as predicted_price
    from fitted_values
    inner join model_versions on fitted_values.model_version = model_versions.model_version
    where fitted_values.kind = 'model'
    {%- for name in ['persistence', 'last_year'] %}
    union all
    select
        observation_id,
        '{{ name }}' as model_version,
        'baseline' as kind,
        month,
        area,
        {{ name }}_price as predicted_price
    from observations
    {%- endfor %}
),

final as (
    select
        together.observation_id,
        together.model_version,
        together.kind,
        'train' as split,
        together.month,
        together.area,
        actuals.price_decile,
        together.predicted_price,
        actuals.actual_price,
        actuals.is_price_valid
    from together
    inner join actuals on together.observation_id = actuals.observation_id
    where {{ is_positive('together.predicted_price') }} and actuals.actual_price > 0
)

select * from final
