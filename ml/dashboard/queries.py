"""What the pages ask of the snapshot; every figure on them comes from here or from ``ml/report_queries.py``.

Parameters: ``$version`` (of a model), ``$month`` (first day), and those of ``Filters``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

CHAMPION = """
select v.*, (
    select max(moved_at) from training.model_aliases as a
    where a.alias = 'champion' and a.model_version = v.model_version
) as since
from training.model_versions as v where v.status = 'champion' order by v.created_at desc limit 1
"""
NEWEST_VERSION = (
    "select model_version, status, reasons, created_at from training.model_versions order by created_at desc limit 1"
)
NEWEST_DATA = "select max(month) as month from training.training_dataset"

#: The newest month of a version with known prices, beside the last known price on the same month.
NEWEST_ACCURACY = """
with months as (
    select * from monitoring.accuracy_by_month where population = 'valid' and split <> 'eval' and mdape_pct is not null
),
newest as (
    select * from months where model_version = $version order by month desc, n desc limit 1
)
select newest.*, persistence.mdape_pct as persistence_mdape_pct
from newest
left join months as persistence
    on newest.month = persistence.month and newest.split = persistence.split
    and persistence.model_version = 'persistence'
"""
NEWEST_COVERAGE = """
select cast(segment as date) as month, n, coverage_pct, mean_width_pct, status from monitoring.interval_coverage
where model_version = $version and segment_type = 'month' and level_pct = 80
order by month desc, n desc limit 1
"""
LAST_SCORING = """
select max(scored_at) as scored_at, max(month) as month, count(*) as scored
from predictions.predictions where model_version = $version and kind = 'model' and split <> 'eval'
"""

CHECKS = """
select check_name, month, value, lower_limit, upper_limit, n, status, severity, since from monitoring.checks
where model_version = $version
qualify row_number() over (partition by check_name order by month desc) = 1
order by array_position(['fail', 'warn', 'insufficient_data', 'pass'], status), check_name
"""
#: The same from the tables that judge themselves, for snapshots without ``monitoring.checks``: the newest month.
CHECKS_WITHOUT_TABLE = """
with accuracy as (
    select * from monitoring.accuracy_by_month
    where model_version = $version and population = 'valid' and split <> 'eval'
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
DECISIONS = """
select * from monitoring.retrain_decisions order by month desc, model_version desc limit 50
"""

#: Versions with something to show on the page of predictions, the champion first, then the newest.
SCORED_VERSIONS = """
select v.model_version, v.status from training.model_versions as v
where exists (
    select 1 from predictions.predictions as p
    where p.model_version = v.model_version and p.kind = 'model' and p.split <> 'eval'
)
order by v.status = 'champion' desc, v.created_at desc
"""
YEARS = """
select distinct year(month) as year from predictions.predictions
where model_version = $version and kind = 'model' and split <> 'eval' order by year desc
"""
AREAS = """
select distinct area from predictions.predictions
where model_version = $version and kind = 'model' and split <> 'eval' and area is not null order by area
"""
LOCALITIES = """
select distinct locality from predictions.predictions
where model_version = $version and kind = 'model' and split <> 'eval' and locality is not null
    and area is not distinct from coalesce($area, area)
order by locality
"""
GRADES = "select distinct grade from predictions.prediction_intervals where model_version = $version order by grade"


@dataclass(frozen=True)
class Filters:
    """Which predictions of a version are looked at; None is all."""

    version: str
    year: int | None = None
    month_number: int | None = None
    area: str | None = None
    locality: str | None = None
    grade: str | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "from_month": date(self.year or 1970, 1, 1),
            "to_month": date((self.year or 1970) + 1, 1, 1),
            "month_number": self.month_number,
            "area": self.area,
            "locality": self.locality,
            "grade": self.grade,
        }

    @property
    def place(self) -> str:
        """SQL condition without the period."""
        conditions = ["model_version = $version", "split <> 'eval'"]
        conditions += ["area = $area"] if self.area is not None else []
        conditions += ["locality = $locality"] if self.locality is not None else []
        if self.grade is not None:
            conditions.append(
                "observation_id in (select observation_id from predictions.prediction_intervals "
                "where model_version = $version and grade = $grade)"
            )
        return " and ".join(conditions)

    @property
    def all(self) -> str:
        """SQL condition with the period."""
        conditions = [self.place]
        # a range, so that DuckDB skips the blocks of other years
        conditions += ["month >= $from_month and month < $to_month"] if self.year is not None else []
        conditions += ["month(month) = $month_number"] if self.month_number is not None else []
        return " and ".join(conditions)

    @property
    def period(self) -> tuple[date, date] | None:
        """First and last month of the chosen period, where it is one span."""
        if self.year is None:
            return None
        first = date(self.year, self.month_number or 1, 1)
        return first, date(self.year, self.month_number or 12, 1)


def scored(filters: Filters) -> str:
    return f"select count(*) as scored from predictions.predictions where kind = 'model' and {filters.all}"


def errors(filters: Filters) -> str:
    """Of valid prices, as ``monitoring.accuracy`` counts them."""
    return f"""
    select
        count(*) as n, avg(abs(error)) as mae, sqrt(avg(error * error)) as rmse, avg(abs(pct_error)) as mape_pct,
        median(abs(pct_error)) as mdape_pct, 100.0 * avg((abs(pct_error) <= 10)::integer) as within_10_pct,
        median(ratio) as median_ratio
    from predictions.predictions_matched
    where is_price_valid and ratio is not null and {filters.all}
    """


def trend(filters: Filters) -> str:
    """All months of the chosen place, whatever the period."""
    return f"""
    select month, count(*) as n, avg(actual_price) as actual_price, avg(predicted_price) as predicted_price,
        avg(abs(pct_error)) as mape_pct
    from predictions.predictions_matched
    where is_price_valid and ratio is not null and {filters.place}
    group by month order by month
    """


def sample(filters: Filters, rows: int) -> str:
    """So many of the chosen homes, always the same ones."""
    return f"""
    select predicted_price, actual_price, pct_error, month, area, locality from predictions.predictions_matched
    where is_price_valid and ratio is not null and {filters.all}
    order by hash(observation_id), observation_id limit {rows}
    """


#: Order of the table of predictions, by what the page calls it.
ORDERS = {
    "newest": "month desc, observation_id",
    "largest error": "abs(pct_error) desc nulls last, observation_id",
    "highest prediction": "predicted_price desc, observation_id",
}


def table(filters: Filters, order: str, rows: int | None) -> str:
    """Predictions with price, range and grade; ``rows`` None is all of them."""
    limit = f"limit {rows}" if rows else ""
    if order == "largest error":
        source = f"select * from predictions.predictions_matched where {filters.all}"
    else:
        source = f"select * from predictions.predictions where kind = 'model' and {filters.all}"
    return f"""
    with chosen as (select * from ({source}) order by {ORDERS[order]} {limit})
    select
        c.observation_id, c.month, c.area, c.locality, c.predicted_price, m.actual_price, m.pct_error,
        i.lower_80, i.upper_80, i.grade, m.is_price_valid
    from chosen as c
    left join predictions.predictions_matched as m
        on c.observation_id = m.observation_id and m.model_version = $version
    left join predictions.prediction_intervals as i
        on c.observation_id = i.observation_id and i.model_version = $version
    order by {ORDERS[order]}
    """
