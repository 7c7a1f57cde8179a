-- How level, uniform and fair the models' prices are, with verdicts by the bands in monitoring_thresholds.
{%- set judged_metrics = ['median_ratio', 'cod', 'prd', 'prb', 'mki'] %}
with measured as (
    select * from {{ ref('int_ratio_statistics') }}
),

limits as (
{{ limits_of(judged_metrics) }}
),

applicable as (
    select
        split,
        model_version,
        population,
        segment_type,
        segment,
        n,
        median_ratio,
        mean_ratio,
        weighted_mean_ratio,
        cod
        {%- for metric in ['prd', 'prb', 'prb_se', 'mki'] %},
        -- rows cut by price have no cheap and dear homes to compare
        case when segment_type <> 'price_decile' then {{ metric }} end as {{ metric }}
        {%- endfor %}
    from measured
),

judged as (
    select
        applicable.*
        {%- for metric in judged_metrics %},
        {{- status_of(metric) }} as {{ metric }}_status
        {%- endfor %}
    from applicable
    cross join limits
),

final as (
    select
        *,
        {{- worst_status(['median_ratio_status', 'cod_status', 'prd_status', 'prb_status', 'mki_status']) }} as status
    from judged
)

select * from final
