-- How level, uniform and fair the models' prices are, with verdicts by the bands in monitoring_thresholds.
{%- set judged_metrics = ['median_ratio', 'cod', 'prd', 'prb', 'mki', 'cod_to_persistence'] %}
with measured as (
    select * from {{ ref('int_ratio_statistics') }}
),

limits as (
{{ limits_of(judged_metrics) }}
),

persistence as (
    select
        split,
        population,
        cod
    from measured
    where model_version = 'persistence' and segment_type = 'all'
),

applicable as (
    select
        {{ qualified('measured', ['split', 'model_version', 'population', 'segment_type', 'segment', 'n']) }},
        {{ qualified('measured', ['median_ratio', 'mean_ratio', 'weighted_mean_ratio']) }},
        {{ qualified('measured', ['cod', 'cod_lower', 'cod_upper']) }}
        {%- for metric in ['prd', 'prd_lower', 'prd_upper', 'prb', 'prb_se', 'mki'] %},
        -- rows cut by price have no cheap and dear homes to compare
        case when measured.segment_type <> 'price_decile' then measured.{{ metric }} end as {{ metric }}
        {%- endfor %},
        case when measured.segment_type <> 'price_decile' then measured.prb - 1.96 * measured.prb_se end as prb_lower,
        case when measured.segment_type <> 'price_decile' then measured.prb + 1.96 * measured.prb_se end as prb_upper,
        -- far more uniform than what was last paid for the same place: has the model seen the price?
        case
            -- it has seen those that it learned from
            when measured.segment_type = 'all' and measured.split <> 'train' and measured.model_version <> 'persistence'
                then measured.cod / nullif(persistence.cod, 0)
        end as cod_to_persistence
    from measured
    left join persistence on measured.split = persistence.split and measured.population = persistence.population
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
        {{- worst_status([
            'median_ratio_status', 'cod_status', 'prd_status', 'prb_status', 'mki_status', 'cod_to_persistence_status',
        ]) }} as status
    from judged
)

select * from final
