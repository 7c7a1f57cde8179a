-- The meaning of the contract's rules, row by row. A view: the bundle runs this very text over a request.
with staged as (
    select * from {{ ref(staging_model()) }}
),

judged as (
    select
        *,
        {{ observation_month() }} as month,
        {{ joined_lists(['parse_labels', labels_of(value_problems())]) }} as labels,
        {{ labels_of(price_problems()) }} as price_reasons
    from staged
),

treated as (
    select
        {{ provenance_columns() }},
        observation_id,
        observed_on,
        month,
        {% for c in contract_columns('price') if c.name == contract().price -%}
        {{ treated_value(c) }} as price,
        {% endfor -%}
        area,
        locality,
        labels,
        price_reasons,
        {{ labels_of(row_problems()) }} as reasons
        {%- for c in contract_columns() %},
        {{ treated_value(c) }} as {{ c.name }}
        {%- endfor %}
    from judged
),

final as (
    select
        *,
        price is not null and {{ list_size('price_reasons') }} = 0 as is_price_valid,
{{ split_of('month', 'observation_id', 'price', 'price_reasons') }} as split
    from treated
)

select * from final
