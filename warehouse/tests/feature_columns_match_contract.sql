-- depends_on: {{ ref('training_dataset') }}
-- Contract: training_dataset holds the canonical columns, then the contract's features, each DOUBLE.
{%- set head = [
    'observation_id', 'observed_on', 'month', 'area', 'locality', 'price', 'is_price_valid', 'split', 'target',
    'target_offset', 'persistence_price', 'last_year_price', 'built_through_batch'
] %}
with expected as (
    {%- for name in head %}
    select '{{ name }}' as name, {{ loop.index }} as position, cast(null as varchar) as type union all
    {%- endfor %}
    {%- for feature in feature_columns() %}
    select '{{ feature.name }}', {{ loop.index + head | length }}, 'DOUBLE'
    {{- ' union all' if not loop.last }}
    {%- else %}
    select 'no features', 0, null
    {%- endfor %}
),

found as (
    select column_name as name, ordinal_position as position, data_type as type
    from information_schema.columns
    where table_schema = 'training' and table_name = 'training_dataset' and table_catalog = '{{ target.database }}'
)

select expected.name as expected_name, found.name as found_name, found.type
from expected
full outer join found on expected.position = found.position
where
    expected.name is distinct from found.name
    or found.type != coalesce(expected.type, found.type)
