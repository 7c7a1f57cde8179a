"""What the monthly report asks of the published snapshot; all figures of ``ml/report.py`` come from here.

Parameters: ``$version`` (champion), ``$month`` (first day) and ``$split`` (the one with most prices of the month).
"""

CHAMPION = "select * from training.model_versions where status = 'champion' order by created_at desc limit 1"
SINCE = """
select moved_at as since from training.model_aliases
where alias = 'champion' and model_version = $version order by moved_at desc limit 1
"""
ABOUT = "select published_at, fingerprint from published.about"

#: Months that can be reported, consecutive ones as one span.
MONTHS = """
with scored as (
    select distinct month from predictions.predictions
    where model_version = $version and kind = 'model' and split <> 'eval'
),
islands as (
    select month, date_diff('month', date '1970-01-01', month) - row_number() over (order by month) as island
    from scored
)
select strftime(min(month), '%Y-%m') as first, strftime(max(month), '%Y-%m') as last from islands
group by island order by first
"""

#: Newest month of the champion whose prices are known.
LATEST = """
select max(a.month) as month from monitoring.accuracy_by_month as a
inner join training.model_versions as v on a.model_version = v.model_version and v.status = 'champion'
where a.split not in ('train', 'eval', 'online')
"""

#: Rows of the month by split, the one with most known prices first: that split is reported.
SCORED = """
select
    coalesce(m.split, p.split) as split,
    count(*) as scored,
    count(m.observation_id) as priced,
    count(*) filter (where m.is_price_valid and m.ratio is not null) as valid,
    median(p.predicted_price) as median_prediction
from predictions.predictions as p
left join predictions.predictions_matched as m
    on p.observation_id = m.observation_id and p.model_version = m.model_version
where p.model_version = $version and p.kind = 'model' and p.split <> 'eval' and p.mode = 'batch' and p.month = $month
group by 1
order by valid desc, scored desc, split
"""

#: Everything judged of the month, and of all (what is null): the worst verdict that could be given.
VERDICTS = """
with verdicts as (
    select 'error and level' as what, status from monitoring.accuracy_by_month
    where model_version = $version and month = $month and split = $split and population = 'valid'
    union all
    select 'ratio study', status from monitoring.ratio_study
    where model_version = $version and split = $split and population = 'valid' and segment_type = 'month'
        and segment = cast(cast($month as date) as varchar)
    union all
    select 'ranges', status from monitoring.interval_coverage
    where model_version = $version and split = $split and segment_type = 'month'
        and segment = cast(cast($month as date) as varchar)
    union all
    -- against what the version promised when it was trained
    select 'error and level', status from monitoring.served_months where model_version = $version and month = $month
    union all
    select 'drift', status from monitoring.drift_by_month where model_version = $version and month = $month
    union all
    -- counts that add up say nothing of the model
    select 'row counts', status from monitoring.reconciliation where status <> 'pass'
)
select
    what,
    case
        when bool_or(status = 'fail') then 'fail'
        when bool_or(status = 'warn') then 'warn'
        when bool_or(status = 'pass') then 'pass'
        else 'insufficient_data'
    end as status
from verdicts
group by grouping sets ((what), ())
order by what nulls first
"""

SERIES = """
select
    month,
    case when model_version = $version then 'model' when kind = 'baseline' and model_version like 'linear_%'
        then 'linear' else model_version end as series,
    arg_max(mdape_pct, n) as mdape_pct,
    arg_max(split, n) as split
from monitoring.accuracy_by_month
where population = 'valid' and model_version in ($version, 'linear_' || $version, 'persistence', 'last_year')
    and split in ('eval', 'holdout') and mdape_pct is not null
group by all
order by series, month
"""
ACCURACY = """
select model_version, kind, n, mae, mdape_pct, within_10_pct, median_ratio, status,
    coalesce(mdape_pct < max(case when kind = 'model' then mdape_pct end) over (), false) as is_closer
from monitoring.accuracy_by_month
where population = 'valid' and month = $month and (
        (model_version in ($version, 'linear_' || $version, 'median_' || $version) and split = $split)
        or (model_version in ('persistence', 'last_year') and split in ('eval', 'holdout'))
    )
qualify row_number() over (partition by model_version order by split = $split desc, n desc, split) = 1
order by kind desc, mdape_pct
"""

DECILES = """
with whole as (
    select cast(segment as integer) as price_decile, n as whole_n, median_ratio as whole_ratio
    from monitoring.ratio_study
    where model_version = $version and split = $split and population = 'valid' and segment_type = 'price_decile'
),
of_month as (
    select price_decile, count(*) as month_n, median(ratio) as month_ratio
    from predictions.predictions_matched
    where model_version = $version and split = $split and month = $month and is_price_valid and ratio is not null
    group by price_decile
)
select * from whole full outer join of_month using (price_decile)
where price_decile is not null order by price_decile
"""
RATIO_STUDY = """
select segment_type, columns('^(n|status|median_ratio|cod|prd|prb|mki)(_status)?$')
from monitoring.ratio_study
where model_version = $version and split = $split and population = 'valid'
    and (segment_type = 'all' or (segment_type = 'month' and segment = cast(cast($month as date) as varchar)))
"""
#: The whole splits beside what one would say without the model; of training rows a sample.
RATIO_BY_SPLIT = """
select split, model_version, n, median_ratio, cod, cod_lower, cod_upper, prd, prd_lower, prd_upper, prb, prb_lower,
    prb_upper, mki, status
from monitoring.ratio_study
where population = 'valid' and segment_type = 'all'
    and model_version in ($version, 'linear_' || $version, 'median_' || $version, 'persistence', 'last_year')
order by array_position(['train', 'eval', 'holdout', 'online', 'to_score'], split), model_version <> $version, cod
"""
LIMITS = "select metric, lower_limit, upper_limit from monitoring.monitoring_thresholds where severity = 'warn'"
LEAST_N = """
select coalesce(max(lower_limit), 0) as least_n from monitoring.monitoring_thresholds
where severity = 'insufficient_data'
"""

#: chance_low and chance_high: within two standard errors of a share of n rows, as monitoring judges it.
_COVERAGE = """
with coverage as (
    select
        segment_type,
        segment,
        level_pct,
        n,
        coverage_pct,
        mean_width_pct,
        status,
        greatest(level_pct - 2 * sqrt(level_pct * (100.0 - level_pct) / n), 0) as chance_low,
        least(level_pct + 2 * sqrt(level_pct * (100.0 - level_pct) / n), 100) as chance_high
    from monitoring.interval_coverage
    where model_version = $version and split = $split and n > 0
)
"""
COVERAGE = f"""{_COVERAGE}
select * from coverage
where segment_type in ('all', 'grade')
    or (segment_type = 'month' and segment = cast(cast($month as date) as varchar))
order by array_position(['month', 'all', 'grade'], segment_type), segment, level_pct
"""
#: The areas with most prices; ``areas`` counts all of them.
AREA_COVERAGE = f"""{_COVERAGE}
select segment as area, n, coverage_pct, chance_low, chance_high, status, count(*) over () as areas
from coverage where segment_type = 'area' and level_pct = 80
qualify row_number() over (order by n desc, segment) <= 30
order by coverage_pct, area
"""
GRADES = """
select grade, count(*) as n, median(forecast_std_pct) as forecast_std_pct
from predictions.prediction_intervals
where model_version = $version and month = $month
group by grade order by grade
"""

AREAS = """
with areas as (
    select coalesce(area, 'unknown') as area, count(*) as n, median(abs(pct_error)) as mdape_pct,
        median(ratio) as median_ratio
    from predictions.predictions_matched
    where model_version = $version and split = $split and month = $month and is_price_valid and ratio is not null
    group by 1
)
select *, count(*) over () as areas from areas
qualify row_number() over (order by n desc, area) <= 30
order by mdape_pct desc, area
"""
COLUMNS = """
select column_name as name from duckdb_columns() where schema_name = 'training' and table_name = 'training_dataset'
"""
#: At most 70 x 70 cells, so that a large month draws as fast as a small one.
CELLS = """
with homes as (
    select t.latitude, t.longitude, m.pct_error
    from predictions.predictions_matched as m
    inner join training.training_dataset as t on m.observation_id = t.observation_id
    where m.model_version = $version and m.split = $split and m.month = $month and m.is_price_valid
        and m.ratio is not null and isfinite(t.latitude) and isfinite(t.longitude)
),
sized as (
    select *, coalesce(nullif(greatest(
        max(latitude) over () - min(latitude) over (), max(longitude) over () - min(longitude) over ()
    ), 0) / 70, 1) as size
    from homes
)
select round(avg(latitude), 5) as latitude, round(avg(longitude), 5) as longitude, median(pct_error) as pct_error,
    count(*) as n
from sized
group by floor(latitude / size), floor(longitude / size)
order by latitude, longitude
"""

IMPORTANCE = """
select feature, mean_absolute_share_pct as share_pct, mean_absolute_contribution as amount,
    change_in_share_pct as change_pct, mean_absolute_share_pct - change_in_share_pct as before_pct,
    count(*) over () as features
from monitoring.feature_importance_by_month
where model_version = $version and month = $month
qualify row_number() over (order by importance_rank, feature) <= 12
order by importance_rank, feature
"""

MISSES = """
with worst as (
    select observation_id, observed_on, area, locality, predicted_price, actual_price, pct_error
    from predictions.predictions_matched
    where model_version = $version and split = $split and month = $month and is_price_valid and ratio is not null
    order by abs(pct_error) desc, observation_id
    limit 10
),
reasons as (
    select observation_id, list({feature: feature, amount: contribution} order by rank, feature) as reasons
    from predictions.explanations semi join worst using (observation_id)
    where model_version = $version and rank between 1 and 3
    group by observation_id
),
comparable_sales as (
    select c.observation_id, list({
        locality: t.locality, sold_month: c.sold_month, price: c.price, adjusted_price: c.adjusted_price,
        similarity: c.similarity
    } order by c.rank) as comparables
    from predictions.comparables as c
    left join training.training_dataset as t on c.comparable_id = t.observation_id
    where c.model_version = $version and c.rank <= 3 and c.observation_id in (select observation_id from worst)
    group by c.observation_id
)
select worst.*, i.lower_80, i.upper_80, i.grade, coalesce(reasons, []) as reasons,
    coalesce(comparables, []) as comparables
from worst
left join predictions.prediction_intervals as i
    on worst.observation_id = i.observation_id and i.model_version = $version
left join reasons on worst.observation_id = reasons.observation_id
left join comparable_sales on worst.observation_id = comparable_sales.observation_id
order by abs(pct_error) desc, worst.observation_id
"""

ROWS = """
select
    count(*) as files, coalesce(sum(landed), 0)::bigint as landed,
    coalesce(sum(accepted_train), 0)::bigint as train, coalesce(sum(accepted_eval), 0)::bigint as eval,
    coalesce(sum(accepted_holdout), 0)::bigint as holdout, coalesce(sum(accepted_to_score), 0)::bigint as to_score,
    coalesce(sum(rejected), 0)::bigint as rejected, coalesce(sum(difference), 0)::bigint as difference,
    case when bool_or(status = 'fail') then 'fail' when count(*) > 0 then 'pass' else 'insufficient_data' end as status
from monitoring.reconciliation
"""
#: Files whose rows do not add up, then the latest.
FILES = """
select file, landed, accepted_train + accepted_eval + accepted_holdout + accepted_to_score as accepted, rejected, status
from monitoring.reconciliation
order by status = 'pass', batch desc, file desc limit 8
"""
QUARANTINED = "select file, reason from raw.files where status = 'quarantined' order by loaded_at desc, file limit 8"
REASONS = "select reason, n, share_pct from monitoring.rejections_by_reason order by n desc, reason limit 12"
LATEST_DATA = "select max(month) as month from training.training_dataset"
