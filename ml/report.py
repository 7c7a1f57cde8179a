"""The monthly report: one HTML file from the published snapshot, for people who open no database.

Every figure is asked of the snapshot in SQL (``ml/report_queries.py``); Python chooses words and places. Charts are
drawn in ``ml/report_charts.py``, the page is ``ml/report.html.j2``. The same snapshot and month give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ml import report_charts as charts
from ml import report_queries as sql
from ml.contract import Contract
from ml.settings import Settings, command, run_command
from ml.words import MISSING, STATUS_WORDS, UNDATED, amount, band, feature_label, learned, number, series_label

Row = dict[str, Any]
Ask = Callable[[str], list[Row]]

RATIO_NAMES = {
    "median_ratio": ("Median ratio", "level: 1 means neither too low nor too high"),
    "cod": ("COD", "dispersion around the median ratio, %"),
    "prd": ("PRD", "above 1: dear homes are predicted too low"),
    "prb": ("PRB", "change of the ratio per doubling of value"),
    "mki": ("MKI", "below 1: predictions are less unequal than prices"),
}


class ReportError(ValueError):
    """The report cannot be written; the message is one sentence that says why."""


@dataclass(frozen=True)
class _Month:
    """What the report is about. ``split`` is the one that most prices of the month are in."""

    month: date
    split: str
    dated: bool

    @property
    def label(self) -> str:
        return f"{self.month:%B %Y}" if self.dated else "All rows"


def write_report(
    settings: Settings, contract: Contract, *, month: date, out: Path | None = None, values: Row | None = None
) -> Path:
    """Write the champion's report of ``month`` (any of its days) and return its path.

    ``out`` defaults to ``<home>/reports/<dataset>/YYYY-MM.html``; 1970-01 is the month of datasets without dates.
    ``values`` is what ``collect`` gave of the month, where it was asked already. Reads nothing but
    ``settings.published``. Raises ReportError when there is no snapshot, no champion, or nothing was scored in that
    month.
    """
    month = month.replace(day=1)
    target = out or settings.home / "reports" / contract.name / f"{month:%Y-%m}.html"
    values = values or collect(settings, contract, month=month)
    page = _environment(contract).get_template("report.html.j2").render(values)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(page, encoding="utf-8", newline="\n")
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def pictures(values: Row) -> dict[str, str]:
    """Charts of the page by name, each an SVG file of its own on white; without those that have nothing to show."""
    sheet = '><rect width="100%" height="100%" fill="white"/>'
    charts = {name.removesuffix("_chart"): svg for name, svg in values.items() if name.endswith("_chart")}
    return {name: str(svg).replace(">", sheet, 1) for name, svg in charts.items() if svg}


def latest_month(settings: Settings) -> date | None:
    """Newest month with predictions of the champion and known prices; None where there is none."""
    with duckdb.connect(str(settings.published), read_only=True) as connection:
        found = connection.execute(sql.LATEST).fetchone()
    return found[0] if found else None


def collect(settings: Settings, contract: Contract, *, month: date) -> Row:
    """Everything the page shows, by name. Raises ReportError."""
    build = run_command(settings.dataset)
    if not settings.published.is_file():
        raise ReportError(f"nothing has been published for {contract.name} at {settings.published}; type: {build}")
    try:
        with duckdb.connect(str(settings.published), read_only=True) as connection:
            return _collect(connection, contract, month)
    except (duckdb.CatalogException, duckdb.BinderException) as error:
        reason = str(error).splitlines()[0]
        raise ReportError(f"{settings.published} lacks what the report needs; type: {build} ({reason})") from error
    except duckdb.IOException as error:
        raise ReportError(f"{settings.published} cannot be read: {str(error).splitlines()[0]}") from error


def _collect(connection: duckdb.DuckDBPyConnection, contract: Contract, month: date) -> Row:
    values: Row = {}

    def ask(query: str) -> list[Row]:
        cursor = connection.execute(query, {k: v for k, v in values.items() if f"${k}" in query})
        names = [column[0] for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    version = next(iter(ask(sql.CHAMPION)), None)
    if version is None:
        raise ReportError(f"no version of {contract.name} is champion; type: {command('train', contract.name)}")
    values |= {"version": version["model_version"], "month": month}
    scored = ask(sql.SCORED)
    if not scored:
        spans = [r["first"] if r["first"] == r["last"] else f"{r['first']} to {r['last']}" for r in ask(sql.MONTHS)]
        raise ReportError(
            f"{version['model_version']} scored nothing in {month:%Y-%m}; months that can be reported: "
            f"{', '.join(spans) or 'none'}"
        )
    about = _Month(month, scored[0]["split"], dated=month != UNDATED)
    values["split"] = about.split
    n_learned, learned_through = learned(version)
    verdicts = ask(sql.VERDICTS)
    return {
        "contract": contract,
        "about": about,
        "version": {
            **version,
            "since": next((r["since"] for r in ask(sql.SINCE)), None),
            "n_learned": n_learned,
            "learned_through": learned_through,
        },
        "snapshot": next(iter(ask(sql.ABOUT)), None),
        "scored": scored[0],
        "status": verdicts[0]["status"],
        "status_line": _status_line(scored[0], verdicts),
        "latest_data": ask(sql.LATEST_DATA)[0]["month"],
        "after_month": [c.name for c in contract.columns if c.known == "after_month" and c.role == "feature"],
        "left_out": [c for c in contract.columns if c.role == "leak"],
        "price_column": next(c for c in contract.columns if c.name == contract.price),
        **_accuracy(ask, about),
        **_ratios(ask, about),
        **_coverage(ask, about),
        **_areas(ask, contract),
        **_importance(ask, contract),
        "misses": [miss | {"strip": Markup(charts.price_strip(miss))} for miss in ask(sql.MISSES)],
        "rows": ask(sql.ROWS)[0],
        "files": ask(sql.FILES),
        "quarantined": ask(sql.QUARANTINED),
        "rejections": ask(sql.REASONS),
    }


def _accuracy(ask: Ask, about: _Month) -> Row:
    series, table = ask(sql.SERIES), ask(sql.ACCURACY)
    drawn = about.dated and any(r["series"] == "model" for r in series)
    return {
        "accuracy": table,
        "model_row": next((r for r in table if r["kind"] == "model"), None),
        "accuracy_chart": Markup(charts.accuracy_over_time(series, month=about.month)) if drawn else None,
    }


def _ratios(ask: Ask, about: _Month) -> Row:
    deciles = ask(sql.DECILES)
    studies = {r["segment_type"]: r for r in ask(sql.RATIO_STUDY)}
    limits = {r["metric"]: (r["lower_limit"], r["upper_limit"]) for r in ask(sql.LIMITS)}
    chart = None
    if deciles:
        whole = f"whole {about.split}" if about.dated else None
        chart = Markup(charts.ratio_by_decile(deciles, month_label=about.label, whole_label=whole))
    return {
        "decile_chart": chart,
        "study": studies.get("month"),
        "whole_study": studies.get("all") if about.dated else None,
        "ratio_splits": ask(sql.RATIO_BY_SPLIT),
        "ratio_statistics": [
            {"key": key, "name": name, "meaning": meaning, "band": band(*limits.get(key, (None, None)))}
            for key, (name, meaning) in RATIO_NAMES.items()
        ],
    }


def _coverage(ask: Ask, about: _Month) -> Row:
    labels: dict[str, str] = {
        "month": f"{about.month:%b %Y}" if about.dated else "all rows",
        "all": f"all {about.split}",
    }
    rows = [
        r | {"label": labels.get(r["segment_type"]) or r["segment"]}
        for r in ask(sql.COVERAGE)
        if about.dated or r["segment_type"] != "all"
    ]
    table: dict[str, Row] = {}
    for r in rows:
        row = table.setdefault(r["label"], {"label": r["label"], "type": r["segment_type"], "n": r["n"], "levels": {}})
        row["levels"][r["level_pct"]] = r
    areas = ask(sql.AREA_COVERAGE)
    return {
        "coverage": list(table.values()),
        "month_coverage": next((row for row in table.values() if row["type"] == "month"), None),
        "coverage_chart": Markup(charts.coverage_by_grade(rows)) if rows else None,
        "area_coverage": areas,
        "area_coverage_chart": Markup(charts.coverage_by_area(areas)) if areas else None,
        "grades": ask(sql.GRADES),
    }


def _areas(ask: Ask, contract: Contract) -> Row:
    areas, least = ask(sql.AREAS), ask(sql.LEAST_N)[0]["least_n"]
    placed = {"latitude", "longitude"} <= {c.name for c in contract.columns} & {r["name"] for r in ask(sql.COLUMNS)}
    cells = ask(sql.CELLS) if placed and areas else []
    return {
        "areas": areas,
        "least_n": least,
        "area_chart": Markup(charts.error_by_area(areas, least_n=least)) if areas else None,
        "map_chart": Markup(charts.residual_map(cells)) if cells else None,
    }


def _importance(ask: Ask, contract: Contract) -> Row:
    rows = [r | {"label": feature_label(contract, r["feature"])} for r in ask(sql.IMPORTANCE)]
    return {"importance": rows, "importance_chart": Markup(charts.importance(rows)) if rows else None}


def _status_line(scored: Row, verdicts: list[Row]) -> str:
    """What the status is made of, in one or two sentences. ``verdicts`` starts with the worst of all."""
    by_status: dict[str, list[str]] = {}
    for verdict in verdicts[1:]:
        by_status.setdefault(verdict["status"], []).append(verdict["what"])
    bad = [f"{STATUS_WORDS[s].capitalize()}: {', '.join(by_status[s])}." for s in ("fail", "warn") if s in by_status]
    if not scored["valid"]:
        known = f"of {scored['priced']:,} known prices none is valid" if scored["priced"] else "no price is known yet"
        return " ".join([f"{scored['scored']:,} homes scored, {known}: accuracy cannot be judged.", *bad])
    if bad:
        return " ".join(bad)
    if "pass" in by_status:
        return f"Within limits: {', '.join(by_status['pass'])}."
    return f"Too few prices ({scored['valid']:,}) for a verdict."


def _environment(contract: Contract) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": number,
        "amount": amount,
        "money": lambda value, sign=False: f"{contract.currency} {amount(value, sign=sign)}",
        "month": lambda value: f"{value:%b %Y}" if value and value != UNDATED else MISSING,
        "words": lambda status: STATUS_WORDS.get(status, status or MISSING),
        "feature": lambda name: feature_label(contract, name),
        "series": series_label,
        "lower_first": lambda text: text[:1].lower() + text[1:],
    }
    return environment
