-- Error of each version over its whole split.
with error_groups as (
    select * from {{ ref('int_error_groups') }}
    where segment_type = 'all'
),

limits as (
{{ limits_of(['mdape_pct', 'median_ratio']) }}
),

judged as (
    select
        error_groups.*,
        {{- status_of('mdape_pct') }} as mdape_pct_status,
        {{- status_of('median_ratio') }} as median_ratio_status
    from error_groups
    cross join limits
),

final as (
    select
        judged.split,
        judged.model_version,
        judged.kind,
        judged.population,
        {{ qualified('judged', error_metric_names()) }},
        {{- worst_status(['mdape_pct_status', 'median_ratio_status']) }} as status
    from judged
)

select * from final
