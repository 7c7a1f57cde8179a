"""What the pages ask of the snapshot; every figure on them comes from here or from ``ml/report_queries.py``.

Parameters: ``$version`` (of a model), ``$month`` (first day), and those of ``Filters``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from ml.dashboard.snapshot import Snapshot

CHAMPION = """
select v.*, (
    select max(moved_at) from training.model_aliases as a
    where a.alias = 'champion' and a.model_version = v.model_version
) as since
from training.model_versions as v where v.status = 'champion' order by v.created_at desc limit 1
"""
NEWEST_VERSION = """
select model_version, status, reasons, created_at from training.model_versions order by created_at desc limit 1
"""
NEWEST_DATA = "select max(month) as month from training.training_dataset"

#: What the monthly scoring made of a version. Answers of the API are not among it: they come at any time, for any
#: month, and would hide that nothing is scored any more.
_BATCH = """
batch as (
    select observation_id, month, scored_at from predictions.predictions
    where model_version = $version and kind = 'model' and split <> 'eval' and mode = 'batch'
)
"""
LAST_SCORING = f"""
with {_BATCH}
select max(scored_at) as scored_at, max(month) as month, count(*) as scored from batch
"""
#: The newest month that was scored and whose prices are known.
NEWEST_PRICED = "select max(month) as month from monitoring.served_months where model_version = $version and n > 0"
#: The same for snapshots without ``monitoring.served_months``.
NEWEST_PRICED_WITHOUT_TABLE = """
select max(month) as month from monitoring.accuracy_by_month
where model_version = $version and population = 'valid' and split = 'holdout' and n > 0
"""
#: Errors and ranges of that month, beside the last known price on it.
NEWEST_FIGURES = f"""
with {_BATCH},
priced as (
    select m.*, m.actual_price between i.lower_80 and i.upper_80 as is_in_range
    from predictions.predictions_matched as m
    semi join (from batch where month = $month) as b on m.observation_id = b.observation_id
    left join predictions.prediction_intervals as i
        on m.observation_id = i.observation_id and m.model_version = i.model_version and i.month = $month
    where m.model_version = $version and m.month = $month and m.is_price_valid and m.ratio is not null
)
select $month::date as month, count(*) as n, median(abs(pct_error)) as mdape_pct, avg(abs(error)) as mae,
    100.0 * avg(is_in_range::integer) as coverage_pct, count(is_in_range) as held_n, (
        select arg_max(mdape_pct, n) from monitoring.accuracy_by_month
        where model_version = 'persistence' and month = $month and population = 'valid'
            and split = 'holdout'
    ) as persistence_mdape_pct
from priced having count(*) > 0
"""

#: One version a month: the present champion, else the newest that was one. After a promotion both have scored.
_SERVED = """
served as (
    select s.* from monitoring.served_months as s
    inner join training.model_versions as v on s.model_version = v.model_version
    qualify row_number() over (partition by s.month order by v.status = 'champion' desc, v.created_at desc) = 1
)
"""
#: The newest verdict of each check that could be given; the worst first.
CHECKS = f"""
with {_SERVED}
select c.check_name, c.model_version, c.month, c.value, c.lower_limit, c.upper_limit, c.n, c.status, c.severity, c.since
from monitoring.checks as c
inner join served on c.model_version = served.model_version and c.month = served.month
qualify row_number() over (partition by c.check_name order by c.status = 'insufficient_data', c.month desc) = 1
order by array_position(['fail', 'warn', 'insufficient_data', 'pass'], c.status), c.severity, c.check_name
"""
#: The same from the tables that judge themselves, for snapshots without ``monitoring.checks``: the newest month.
CHECKS_WITHOUT_TABLE = """
with accuracy as (
    select * from monitoring.accuracy_by_month
    where model_version = $version and population = 'valid' and split = 'holdout'
    order by month desc, n desc limit 1
),
ratios as (
    select r.*, accuracy.month from monitoring.ratio_study as r
    inner join accuracy on r.split = accuracy.split and r.segment = cast(accuracy.month as varchar)
    where r.model_version = $version and r.population = 'valid' and r.segment_type = 'month'
),
coverage as (
    select c.*, accuracy.month from monitoring.interval_coverage as c
    inner join accuracy on c.split = accuracy.split and c.segment = cast(accuracy.month as varchar)
    where c.model_version = $version and c.segment_type = 'month' and c.level_pct = 80
),
judged as (
    select 'mdape_pct' as check_name, month, mdape_pct as value, n, status from accuracy
    union all
    select 'median_ratio', month, median_ratio, n, median_ratio_status from ratios
    union all
    select 'cod', month, cod, n, cod_status from ratios
    union all
    select 'prd', month, prd, n, prd_status from ratios
    union all
    select 'prb', month, prb, n, prb_status from ratios
    union all
    select 'coverage_80_pct', month, coverage_pct, n, status from coverage
    union all
    select 'reconciliation', null, sum(abs(difference)), sum(landed),
        case when bool_or(status = 'fail') then 'fail' else 'pass' end
    from monitoring.reconciliation having count(*) > 0
)
select j.check_name, j.month, j.value, t.lower_limit, t.upper_limit, j.n::bigint as n, j.status,
    null as severity, null::date as since
from judged as j
left join monitoring.monitoring_thresholds as t on j.check_name = t.metric and t.severity = 'warn'
order by array_position(['fail', 'warn', 'insufficient_data', 'pass'], j.status), j.check_name
"""

UPPER_LIMITS = "select severity, upper_limit from monitoring.monitoring_thresholds where metric = $metric"

#: The newest first.
MOVES = """
select moved_at as at, alias, model_version, previous_version, actor, reason from training.model_aliases
order by moved_at desc limit 50
"""
DECISIONS = f"""
with {_SERVED}
select d.month, d.model_version, d.decision, d.reasons, d.n, d.mdape_pct, d.new_labels, d.months_since_training
from monitoring.retrain_decisions as d
inner join served on d.model_version = served.model_version and d.month = served.month
order by d.month desc limit 60
"""
#: First month that each champion served, from the second champion on.
CHANGES = f"""
with {_SERVED},
months as (
    select month, model_version, lag(model_version) over (order by month) as before from served
)
select month, model_version, before from months where model_version <> before order by month
"""
#: The error of each month's own champion, and what one would have said without it; ``report_queries.SERIES`` is the
#: same of one version.
SERVED_SERIES = f"""
with {_SERVED},
first_served as (
    select arg_min(model_version, month) as model_version, min(month) as month from served
    where mdape_pct is not null
),
baselines as (
    select month, model_version, mdape_pct, n from monitoring.accuracy_by_month
    where population = 'valid' and kind = 'baseline' and split in ('eval', 'holdout') and mdape_pct is not null
)
-- verdicts on months of few prices take those before them in
select s.month, 'model' as series, coalesce(own.mdape_pct, s.mdape_pct) as mdape_pct, 'served' as split
from served as s
left join monitoring.accuracy_by_month as own
    on s.model_version = own.model_version and s.month = own.month and own.population = 'valid'
        and own.split = 'holdout'
where s.mdape_pct is not null
union all
select a.month, 'model', a.mdape_pct, 'eval'
from monitoring.accuracy_by_month as a
inner join first_served as f on a.model_version = f.model_version and a.month < f.month
where a.population = 'valid' and a.split = 'eval' and a.mdape_pct is not null
union all
select s.month, 'linear', b.mdape_pct, null
from served as s inner join baselines as b on s.month = b.month and b.model_version = 'linear_' || s.model_version
union all
select month, model_version, arg_max(mdape_pct, n), null
from baselines where model_version in ('persistence', 'last_year') group by month, model_version
order by series, month
"""

#: Versions with something to show on the page of predictions, the champion first, then the newest.
SCORED_VERSIONS = """
select v.model_version, v.status from training.model_versions as v
where exists (
    select 1 from predictions.predictions as p
    where p.model_version = v.model_version and p.kind = 'model' and p.split <> 'eval' and p.mode = 'batch'
)
order by v.status = 'champion' desc, v.created_at desc
"""
#: SCORED of what holds now for each home, whichever version said it; answers of the API are of homes that need not be.
CURRENT = """
select observation_id, month, area, locality, predicted_price, model_version from predictions.current_predictions
where mode = 'batch'
"""
OF_VERSION = """
select observation_id, month, area, locality, predicted_price, model_version from predictions.predictions
where model_version = $version and kind = 'model' and split <> 'eval' and mode = 'batch'
"""
#: One row for each scored home, with its price and range: every question of the page is about these.
SCORED = """
select p.observation_id, p.month, p.area, p.locality, p.predicted_price, m.actual_price, m.error, m.pct_error, m.ratio,
    coalesce(m.is_price_valid and m.ratio is not null, false) as is_measured, i.lower_80, i.upper_80, i.grade,
    p.model_version, hash(p.observation_id) as drawn
from ({predictions}) as p
left join predictions.predictions_matched as m
    on p.observation_id = m.observation_id and p.model_version = m.model_version
left join predictions.prediction_intervals as i
    on p.observation_id = i.observation_id and p.model_version = i.model_version
"""

#: Stands among the versions where several scored.
NOW = "what holds now"


def scored_versions(snapshot: Snapshot) -> list[str]:
    """What can be looked at: what holds now for each home, where several versions scored, then each of them."""
    versions = [r["model_version"] for r in snapshot.rows(SCORED_VERSIONS)]
    several = len(versions) > 1 and snapshot.has("predictions.current_predictions")
    return [NOW, *versions] if several else versions


def scored_table(snapshot: Snapshot, version: str) -> str:
    """Name of the table of one of ``scored_versions``, prepared at the first call."""
    source = CURRENT if version == NOW else OF_VERSION
    return snapshot.prepare(f"scored {version}", SCORED.format(predictions=source), version=version)


@dataclass(frozen=True)
class Filters:
    """Which rows of the table ``scored`` are looked at; None is all."""

    scored: str
    """Name of the table that SCORED was prepared as."""
    year: int | None = None
    month_number: int | None = None
    area: str | None = None
    locality: str | None = None
    grade: str | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "year": self.year,
            "month_number": self.month_number,
            "area": self.area,
            "locality": self.locality,
            "grade": self.grade,
        }

    def on(self, scored: str) -> Filters:
        """The same filters on another table."""
        return replace(self, scored=scored)

    @property
    def place(self) -> str:
        """SQL condition without the period."""
        wanted = {"area": self.area, "locality": self.locality, "grade": self.grade}
        return " and ".join(f"{name} = ${name}" for name, value in wanted.items() if value is not None) or "true"

    @property
    def everything(self) -> str:
        """SQL condition with the period."""
        conditions = [self.place]
        if self.year is not None:
            # a span of months is skipped to: the rows stand month by month
            conditions.append("month between make_date($year, 1, 1) and make_date($year, 12, 1)")
        if self.month_number is not None:
            conditions.append("month(month) = $month_number")
        return " and ".join(conditions)

    @property
    def period(self) -> tuple[date, date] | None:
        """First and last month of the chosen period, where it is one span."""
        if self.year is None:
            return None
        return date(self.year, self.month_number or 1, 1), date(self.year, self.month_number or 12, 1)


def years(scored: str) -> str:
    return f"select distinct year(month) as year from {scored} order by year desc"


def areas(scored: str) -> str:
    return f"select distinct area from {scored} where area is not null order by area"


def localities(scored: str) -> str:
    return f"""
    select distinct locality from {scored} where locality is not null and ($area is null or area = $area)
    order by locality
    """


def grades(scored: str) -> str:
    return f"select distinct grade from {scored} where grade is not null order by grade"


def figures(filters: Filters) -> str:
    """Errors of valid prices, as ``monitoring.accuracy`` counts them."""
    return f"""
    select
        count(*) as scored, count(*) filter (where is_measured) as n,
        avg(abs(error)) filter (where is_measured) as mae,
        sqrt(avg(error * error) filter (where is_measured)) as rmse,
        avg(abs(pct_error)) filter (where is_measured) as mape_pct,
        median(abs(pct_error)) filter (where is_measured) as mdape_pct,
        100.0 * avg((abs(pct_error) <= 10)::integer) filter (where is_measured) as within_10_pct,
        median(ratio) filter (where is_measured) as median_ratio
    from {filters.scored} where {filters.everything}
    """


def trend(filters: Filters) -> str:
    """All months of the chosen place, whatever the period."""
    return f"""
    select month, count(*) as n, avg(actual_price) as actual_price, avg(predicted_price) as predicted_price
    from {filters.scored} where is_measured and {filters.place}
    group by month order by month
    """


def sample(filters: Filters, rows: int) -> str:
    """So many of the chosen homes, always the same ones."""
    return f"""
    with drawn as (
        select predicted_price, actual_price, area, locality from {filters.scored}
        where is_measured and {filters.everything}
        order by drawn limit {rows}
    )
    select predicted_price, actual_price, concat_ws(', ', area, nullif(locality, area)) as place from drawn
    """


#: Orders of the table of predictions, by what the page calls them.
ORDERS = {
    "newest": "month desc, observation_id",
    "largest error": "abs(pct_error) desc nulls last, observation_id",
    "highest prediction": "predicted_price desc nulls last, observation_id",
}


#: Digits of the chosen homes' prices in the table of predictions, those of the largest as in ml/words.py.
PRICE_DIGITS = """(
    select cast(greatest(0, 2 - floor(log10(max(predicted_price) filter (predicted_price > 0)))) as integer) from chosen
)"""
#: Digits of numbers there.
ROUNDED = dict.fromkeys(("predicted_price", "actual_price", "lower_80", "upper_80"), PRICE_DIGITS) | {"pct_error": "1"}


def homes(filters: Filters, order: str, rows: int | None) -> str:
    """Predictions with price, range and grade, for a spreadsheet; the first ``rows``, rounded, are for the page."""
    if rows is None:
        replaced = ", ".join(f"{_harmless(name)} as {name}" for name in ("area", "locality", "model_version"))
    else:
        # a table on a page cuts decimals off; adding 0 makes -0 a 0
        replaced = ", ".join(
            f"round(cast({name} as double), {digits}) + 0 as {name}" for name, digits in ROUNDED.items()
        )
    limit = f"limit {rows}" if rows else ""
    return f"""
    with chosen as (
        select observation_id, month, area, locality, predicted_price, actual_price, pct_error, lower_80, upper_80,
            grade, model_version
        from {filters.scored} where {filters.everything} order by {ORDERS[order]} {limit}
    )
    select * replace ({replaced}) from chosen order by {ORDERS[order]}
    """


def _harmless(name: str) -> str:
    """SQL of a text that a spreadsheet does not take for a formula."""
    return f"case when regexp_matches({name}, '^[=+@\\t\\r-]') then chr(39) || {name} else {name} end"


#: The split of a version that says most of it: what it was trained or evaluated on comes last.
SPLIT = """
select split from monitoring.accuracy where model_version = $version and population = 'valid'
order by array_position(['holdout', 'to_score', 'online', 'eval', 'train'], split) limit 1
"""

COVERAGE_BY_MONTH = """
select cast(segment as date) as month, level_pct, n, coverage_pct, mean_width_pct, status
from monitoring.interval_coverage
where model_version = $version and segment_type = 'month' and split <> 'online' order by level_pct, month
"""
COVERAGE_BY_GRADE = """
select
    segment as grade, max(n) as n, any_value(mdape_pct) as mdape_pct,
    max(coverage_pct) filter (where level_pct = 50) as coverage_50,
    max(coverage_pct) filter (where level_pct = 80) as coverage_80,
    max(coverage_pct) filter (where level_pct = 95) as coverage_95,
    max(mean_width_pct) filter (where level_pct = 80) as width_80,
    max(status) filter (where level_pct = 80) as status
from monitoring.interval_coverage where model_version = $version and segment_type = 'grade' and split <> 'online'
group by segment order by segment
"""
RATIO_BY_DECILE = """
select cast(segment as integer) as price_decile, n, median_ratio, cod, status from monitoring.ratio_study
where model_version = $version and split = $split and population = 'valid' and segment_type = 'price_decile'
order by price_decile
"""
RATIO_WHOLE = """
select * from monitoring.ratio_study
where model_version = $version and split = $split and population = 'valid' and segment_type = 'all'
"""
#: The worst verdict first, then the largest error.
RATIO_BY_AREA = """
select r.segment as area, r.n, a.mdape_pct, r.median_ratio, r.cod, r.prd, r.prb, r.mki, r.status
from monitoring.ratio_study as r
left join monitoring.accuracy_by_segment as a
    on r.model_version = a.model_version and r.split = a.split and r.population = a.population
    and r.segment_type = a.segment_type and r.segment = a.segment
where r.model_version = $version and r.split = $split and r.population = 'valid' and r.segment_type = 'area'
order by array_position(['fail', 'warn', 'pass', 'insufficient_data'], r.status), a.mdape_pct desc nulls last, area
limit 60
"""
#: The features that drifted, then those that are farthest by a measure, and their months.
DRIFT = """
with drift as (
    select feature, month, {measure} as value, n, status from monitoring.feature_drift where model_version = $version
),
worst as (
    select feature, max(value) as most, bool_or(status in ('warn', 'fail')) as drifted from drift
    group by feature order by drifted desc, most desc nulls last, feature limit 24
)
select drift.*, (select count(distinct feature) from drift) as compared
from drift inner join worst on drift.feature = worst.feature
order by worst.drifted desc, worst.most desc nulls last, drift.feature, drift.month
"""
ERROR_ESTIMATES = """
select month, estimated_mdape_pct as mdape_pct from monitoring.error_estimates
where model_version = $version and estimated_mdape_pct is not null order by month
"""

#: One row for each scored home that has a place; ``{scored}`` is the prepared table.
PLACED = """
select s.*, t.{longitude}::double as longitude, t.{latitude}::double as latitude
from {scored} as s inner join training.training_dataset as t on s.observation_id = t.observation_id
where isfinite(t.{latitude}) and isfinite(t.{longitude})
"""


def cells(filters: Filters) -> str:
    """At most 60 x 60 cells, so that all homes draw as fast as those of one place."""
    return f"""
    with homes as (select * from {filters.scored} where {filters.everything}),
    span as (
        select coalesce(nullif(greatest(
            max(latitude) - min(latitude), max(longitude) - min(longitude)
        ), 0) / 60, 1) as size from homes
    )
    select
        avg(latitude) as latitude, avg(longitude) as longitude, any_value(area) as area, count(*) as n,
        count(*) filter (where is_measured) as n_measured,
        median(pct_error) filter (where is_measured) as pct_error,
        median(abs(pct_error)) filter (where is_measured) as mdape_pct,
        median(predicted_price) as predicted_price
    from homes, span
    group by floor(latitude / size), floor(longitude / size)
    order by n desc
    """


def centres(filters: Filters) -> str:
    """Where the names of the largest areas stand."""
    return f"""
    select area, median(latitude) as latitude, median(longitude) as longitude, count(*) as n
    from {filters.scored} where area is not null group by area order by n desc, area limit 40
    """


ROWS_BY_LAYER = """
select
    (select count(*) from raw.files) as files,
    (select coalesce(sum(landed), 0) from monitoring.reconciliation)::bigint as landed,
    (select coalesce(sum(rejected), 0) from monitoring.reconciliation)::bigint as rejected,
    (select coalesce(sum(accepted_train + accepted_eval + accepted_holdout + accepted_to_score), 0)
        from monitoring.reconciliation)::bigint as accepted,
    (select coalesce(sum(accepted_to_score), 0) from monitoring.reconciliation)::bigint as to_score,
    (select coalesce(sum(abs(difference)), 0) from monitoring.reconciliation)::bigint as difference,
    (select count(*) from raw.files where status = 'quarantined') as quarantined,
    (select max(loaded_at) from raw.files) as loaded_at,
    (select max(month) from training.training_dataset) as newest_month
"""
REASONS = "select * from monitoring.rejections_by_reason order by n desc, reason"


def files(state: str | None) -> str:
    """Landed files, the newest first; ``state`` quarantined or rejected leaves out the others."""
    condition = {"quarantined": "f.status = 'quarantined'", "rejected": "r.rejected > 0"}.get(state or "", "true")
    return f"""
    select
        f.file, f.status as state, f.loaded_at, f.rows, r.landed,
        r.accepted_train + r.accepted_eval + r.accepted_holdout + r.accepted_to_score as accepted,
        r.rejected, r.difference, f.bytes / 1e6 as megabytes, f.batch
    from raw.files as f
    left join monitoring.reconciliation as r on f.file = r.file and f.batch = r.batch
    where {condition}
    order by f.loaded_at desc, f.batch desc, f.file
    """


QUARANTINED = """
select file, reason, loaded_at, rows, report from raw.files where status = 'quarantined'
order by loaded_at desc, batch desc, file limit 30
"""

VERSIONS = """
select model_version, status, created_at, trained_from, trained_through, eval_from, n_train, n_eval, features,
    best_iteration, eval_mae, eval_mdape_pct, eval_r2, eval_baseline_mae, reasons, run_id, git_commit, model_sha256,
    evaluated_sha256
from training.model_versions order by created_at desc
"""
ROWS_BY_TABLE = """
select schema_name || '.' || table_name as "table", schema_name, table_name, sum("rows")::bigint as n
from published.parts group by all
"""

IMPORTANCE = """
select feature, mean_absolute_share_pct as share_pct, month from monitoring.feature_importance_by_month
where model_version = $version and month = (
    select max(month) from monitoring.feature_importance_by_month where model_version = $version
)
order by importance_rank limit 12
"""
#: On the rows of the version: what needs no model knows all months, and other months may be easier. What
#: ``monitoring.accuracy`` says of a baseline holds where it is about the same rows.
BESIDE_BASELINES = """
with compared as (
    select * from predictions.predictions_matched
    where split = $split and is_price_valid and ratio is not null
        and model_version in ($version, 'linear_' || $version, 'median_' || $version, 'persistence', 'last_year')
),
measured as (
    select model_version, any_value(kind) as kind, count(*) as n, avg(abs(error)) as mae,
        median(abs(pct_error)) as mdape_pct, 100 * avg((abs(pct_error) <= 10)::integer) as within_10_pct,
        1 - sum(error * error) / nullif(var_pop(actual_price) * count(*), 0) as r2, median(ratio) as median_ratio
    from compared
    semi join (select observation_id from compared where model_version = $version) as mine using (observation_id)
    group by model_version
)
select measured.*, a.status from measured
left join monitoring.accuracy as a
    on a.population = 'valid' and a.split = $split and a.model_version = measured.model_version and a.n = measured.n
order by kind desc, mdape_pct
"""
COMPARISONS = """
select challenger, champion, stage, n, challenger_mape_pct, champion_mape_pct, error_reduction_pct, reduction_lower_pct,
    reduction_upper_pct, verdict, reason
from monitoring.challenger_comparisons
"""
PREDICTION_DRIFT_NEWEST = """
select feature, month, psi, ks, wasserstein, n, status from monitoring.prediction_drift
where model_version = $version
qualify row_number() over (partition by feature order by status = 'insufficient_data', month desc) = 1
order by feature
"""

#: Rank of each feature of the champion in the newest month.
RANKS = """
select feature, importance_rank as "rank" from monitoring.feature_importance_by_month
where model_version in (select model_version from training.model_versions where status = 'champion')
qualify month = max(month) over ()
"""
