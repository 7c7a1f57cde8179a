-- Error of each scored month before its prices are known: the level of the last known months, once as it is and once
-- corrected by how wide the ranges of this month's homes are beside theirs. Of these candidates the one that was
-- nearest in the last twelve known months speaks. Nothing of the month or of a later one enters.
{%- set windows = [1, 3, 6, 12] %}
{%- set candidates = [] %}
{%- for window in windows %}{% for corrected in [0, 1] %}
{%- do candidates.append('last_' ~ window ~ ('_corrected' if corrected else '')) %}
{%- endfor %}{% endfor %}
with errors as (
    select
        model_version,
        month,
        split = 'eval' as is_eval,
        sum(n) as n,
        -- a month's rows are of one split but where prices came for some of them only
        sum(n * mdape_pct) / sum(n) as mdape_pct
    from {{ ref('accuracy_by_month') }}
    where population = 'valid' and kind = 'model' and split in ('eval', 'holdout')
    group by model_version, month, split = 'eval'
),

limits as (
{{ limits_of(['mdape_pct']) }}
),

widths as (
    select
        model_version,
        month,
        {{ median_of('forecast_std_pct') }} as width_pct
    from {{ ref('prediction_intervals') }}
    group by model_version, month
),

calibration as (
    select
        model_version,
        month,
        100 * max(case when trait = 'overall' then factor end)
        * max(case when trait = 'quantile' and class = 'std' then factor end) as width_pct
    from {{ ref('interval_calibration') }}
    group by model_version, month
),

drift as (
    select
        model_version,
        month,
        excess
    from {{ ref('prediction_drift') }}
    where feature = 'prediction'
),

-- evaluated months come first: they are known before anything is scored
months as (
    select
        model_version,
        month,
        true as is_eval,
        n
    from errors
    where is_eval
    union all
    select
        model_version,
        month,
        false as is_eval,
        n
    from {{ ref('int_drift_series') }}
    where part = 'scored'
),

measured as (
    select
        months.model_version,
        months.month,
        months.is_eval,
        months.n,
        coalesce(errors.n, 0) as n_known,
        case when errors.n >= limits.minimum_n then errors.mdape_pct end as mdape_pct,
        -- how hard the month's homes are beside those that the ranges were made from
        case when not months.is_eval then ln(widths.width_pct / nullif(calibration.width_pct, 0)) end as log_hardness,
        coalesce(drift.excess, 0) as prediction_excess,
        row_number() over (
            partition by months.model_version
            order by months.is_eval desc, months.month asc
        ) as place
    from months
    cross join limits
    left join errors
        on
            months.model_version = errors.model_version
            and months.month = errors.month
            and months.is_eval = errors.is_eval
    left join widths on months.model_version = widths.model_version and months.month = widths.month
    left join calibration on months.model_version = calibration.model_version and months.month = calibration.month
    left join drift on months.model_version = drift.model_version and months.month = drift.month
),

known as (
    select
        model_version,
        place,
        log_hardness,
        ln(mdape_pct) as log_mdape
    from measured
    where mdape_pct > 0
),

before as (
    select
        measured.model_version,
        measured.place,
        known.place as known_place,
        known.log_mdape,
        known.log_hardness,
        row_number() over (
            partition by measured.model_version, measured.place
            order by known.place desc
        ) as months_back
    from measured
    inner join known on measured.model_version = known.model_version and measured.place > known.place
),

levels as (
    select
        before.model_version,
        before.place
        {%- for window in windows %},
        avg(case when before.months_back <= {{ window }} then before.log_mdape end) as last_{{ window }},
        avg(case when before.months_back <= {{ window }} then before.log_mdape end) + coalesce(
            max(measured.log_hardness)
            - avg(case when before.months_back <= {{ window }} then before.log_hardness end), 0
        ) as last_{{ window }}_corrected
        {%- endfor %}
    from before
    inner join measured on before.model_version = measured.model_version and before.place = measured.place
    group by before.model_version, before.place
),

misses as (
    {%- for candidate in candidates %}
    select
        known.model_version,
        known.place,
        '{{ candidate }}' as candidate,
        {{ loop.index }} as preference,
        known.log_mdape - levels.{{ candidate }} as miss
    from known
    inner join levels on known.model_version = levels.model_version and known.place = levels.place
    {{ 'union all' if not loop.last }}
    {%- endfor %}
),

records as (
    select
        before.model_version,
        before.place,
        misses.candidate,
        count(*) as months,
        sum(misses.miss * misses.miss) as squares,
        row_number() over (
            partition by before.model_version, before.place
            order by avg(abs(misses.miss)), max(misses.preference)
        ) as candidate_rank
    from before
    inner join misses
        on before.model_version = misses.model_version and before.known_place = misses.place
    where before.months_back <= 12
    group by before.model_version, before.place, misses.candidate
    having count(*) >= 2
),

estimated as (
    select
        measured.*,
        exp(
            case coalesce(records.candidate, 'last_3')
                {%- for candidate in candidates %}
                when '{{ candidate }}' then levels.{{ candidate }}
                {%- endfor %}
            end
        ) as estimated_mdape_pct,
        -- a miss of 10 % stands for three months where few are known; predictions unlike those judged make it wider
        sqrt((coalesce(records.squares, 0) + 3 * 0.01) / (coalesce(records.months, 0) + 3))
        * greatest(1, measured.prediction_excess) as spread
    from measured
    left join levels on measured.model_version = levels.model_version and measured.place = levels.place
    left join records
        on
            measured.model_version = records.model_version
            and measured.place = records.place
            and records.candidate_rank = 1
    where not measured.is_eval
),

judged as (
    select
        estimated.model_version,
        estimated.month,
        cast(estimated.n as bigint) as n,
        cast(estimated.n_known as bigint) as n_known,
        estimated.estimated_mdape_pct,
        estimated.estimated_mdape_pct * exp(-1.96 * estimated.spread) as lower_mdape_pct,
        estimated.estimated_mdape_pct * exp(1.96 * estimated.spread) as upper_mdape_pct,
        estimated.mdape_pct as realised_mdape_pct,
        estimated.mdape_pct is null as is_estimate,
        coalesce(estimated.mdape_pct, estimated.estimated_mdape_pct) as mdape_pct
    from estimated
),

final as (
    select
        {{ qualified('judged', ['model_version', 'month', 'n', 'n_known', 'estimated_mdape_pct', 'lower_mdape_pct']) }},
        {{ qualified('judged', ['upper_mdape_pct', 'realised_mdape_pct', 'is_estimate']) }},
        {{- status_of('mdape_pct') }} as status
    from judged
    cross join limits
)

select * from final
