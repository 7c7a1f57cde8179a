-- Point in time: a comparable was sold in an earlier month and is not the home itself.
select
    observation_id,
    model_version,
    comparable_id
from {{ source('predictions', 'comparables') }}
where
    observation_id = comparable_id
    {%- if contract().observed_on %}
    or sold_month >= month
    {%- endif %}
