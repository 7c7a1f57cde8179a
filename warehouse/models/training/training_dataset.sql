-- Features with their label and split.
with features as (
    select * from {{ ref('features') }}
),

final as (
    select
        observation_id,
        observed_on,
        month,
        area,
        locality,
        price,
        is_price_valid,
        split,
        {{ log_of('price') }} - target_offset as target,
        target_offset,
        persistence_price,
        last_year_price,
        built_through_batch
        {%- for feature in feature_columns() %},
        {{ feature.name }}
        {%- endfor %}
    from features
)

select * from final
