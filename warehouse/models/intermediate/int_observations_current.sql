{{ config(materialized='incremental', incremental_strategy='delete+insert', unique_key='observation_id') }}

-- Which landed row stands for an observation: the latest load that passed every rule.
with labelled as (
    select * from {{ ref('int_observations_labelled') }}
),
{%- if is_incremental() %}

touched as (
    select distinct observation_id
    from labelled
    where _batch > {{ latest_value(this, '_batch') }}
),
{%- endif %}

accepted as (
    select
        labelled.observation_id,
        labelled._batch,
        labelled._row,
        labelled._file
    from labelled
    {%- if is_incremental() %}
    inner join touched on labelled.observation_id = touched.observation_id
    {%- endif %}
    where
        {{ list_size('labelled.reasons') }} = 0
        -- a price is only looked at where it would be learned from
        and not (labelled.split = 'train' and {{ list_size('labelled.price_reasons') }} > 0)
),

ranked as (
    select
        *,
        row_number() over (partition by observation_id order by _batch desc, _row desc) as load_rank
    from accepted
),

final as (
    select
        observation_id,
        _batch,
        _row,
        _file
    from ranked
    where load_rank = 1
)

select * from final
