"""How good the champion is month by month, in whose prices, and whether its inputs still look as they did."""

from __future__ import annotations

import streamlit as st

from ml import report_queries
from ml.dashboard import charts, queries
from ml.dashboard.page import Column, Page, chart, choose_one, head, month_label, nothing, section, table
from ml.dashboard.snapshot import Row
from ml.dashboard.views.overview import changes, decisions, error_series, limits
from ml.words import feature_label, number, series_label

#: Measures of drift by the words on the page.
DRIFTS = {
    "of its limit": "excess",
    "PSI": "psi",
    "Jensen-Shannon": "js",
    "Kolmogorov-Smirnov": "ks",
    "Wasserstein": "wasserstein",
}

#: Columns of every ratio study: level and uniformity, then fairness and the verdict.
LEVEL = [Column("median_ratio", "Median ratio", 3), Column("cod", "COD, %", 1)]
FAIRNESS = [Column("prd", "PRD", 3), Column("prb", "PRB", 3), Column("mki", "MKI", 3), Column("status", "Verdict")]

WHOLE = {
    "prediction": "Predictions, against those of the training window",
    "residual": "Errors, against those of the evaluation",
    "target": "Prices, against those of the training window",
}


def render(page: Page) -> None:
    head("Monitoring", f"{page.contract.title}: is the model still as good as it was, for everybody?")
    versions = [r["model_version"] for r in page.snapshot.rows(queries.SCORED_VERSIONS)]
    if not versions:
        nothing("Nothing has been scored yet.", page.why_unscored)
        return
    version = choose_one("Model", "version", versions, first=versions[0])
    split = page.snapshot.first(queries.SPLIT, version=version)
    if split is None:
        nothing("No price of a scored home is known yet.", "Errors, ranges and ratios appear when actual prices land.")
    else:
        if page.dated:
            _errors(page, version)
        _coverage(page, version)
        _ratios(page, version, split["split"])
    _drift(page, version)


def _errors(page: Page, version: str) -> None:
    section("Error by month", "Median absolute error; the baselines need no model.")
    series = error_series(page, version)
    if page.snapshot.has("monitoring.error_estimates", "estimated_mdape_pct"):
        estimates = page.snapshot.rows(queries.ERROR_ESTIMATES, version=version)
        series += [r | {"series": "estimate", "split": None} for r in estimates]
    warn, fail = limits(page, "mdape_pct")
    figure = charts.accuracy_over_time(series, warn=warn, fail=fail, moves=changes(page), decisions=decisions(page))
    chart(figure, key="errors", alt="Line chart: median absolute error by month, model against baselines")


def _coverage(page: Page, version: str) -> None:
    section("Price ranges", "How often the price came within its range: 50, 80 and 95 % is what they promise.")
    if page.dated:
        rows = page.snapshot.rows(queries.COVERAGE_BY_MONTH, version=version)
        if rows:
            chart(charts.coverage(rows), key="coverage", alt="Line chart: share of prices within their ranges by month")
    grades = page.snapshot.rows(queries.COVERAGE_BY_GRADE, version=version)
    if not grades:
        nothing("No price range can be judged yet.", "Ranges need errors that were known before the month.")
        return
    columns = [
        Column("grade", "Grade"),
        Column("n", "n", 0),
        Column("mdape_pct", "Median error, %", 2),
        Column("coverage_50", "In 50 % range", 1),
        Column("coverage_80", "In 80 % range", 1),
        Column("coverage_95", "In 95 % range", 1),
        Column("width_80", "Width of 80 % range, %", 1),
        Column("status", "Verdict"),
    ]
    table(grades, columns, label="Price ranges by grade")


def _ratios(page: Page, version: str, split: str) -> None:
    section("Cheap and dear homes", "Median of predicted / paid by tenth of the month's prices; 1 is level.")
    deciles = page.snapshot.rows(queries.RATIO_BY_DECILE, version=version, split=split)
    if deciles:
        chart(charts.ratio_by_decile(deciles), key="deciles", alt="Dots: median ratio by price decile")
    whole = page.snapshot.first(queries.RATIO_WHOLE, version=version, split=split)
    if whole:
        names = {"median_ratio": "Median ratio", "cod": "COD, %", "prd": "PRD", "prb": "PRB", "mki": "MKI"}
        rows = [
            {"name": name, "value": whole[key], "status": whole.get(f"{key}_status")} | _band(page, key)
            for key, name in names.items()
        ]
        columns = [Column("status", "Verdict"), Column("name", "Ratio study (IAAO)"), Column("value", "Value", 3)]
        columns += [Column("low", "At least", 2), Column("high", "At most", 2)]
        table(rows, columns, label="Ratio study of the whole split")
    splits = page.snapshot.rows(report_queries.RATIO_BY_SPLIT, version=version)
    if splits:
        columns = [
            Column("split", "Split"),
            Column("series", "Price"),
            Column("n", "n", 0),
            *LEVEL,
            Column("cod_lower", "from", 1),
            Column("cod_upper", "to", 1),
            *FAIRNESS,
        ]
        rows = [r | {"series": series_label(r["model_version"])} for r in splits]
        table(rows, columns, label="Ratio study by split; train is a sample of what the model learned from")
    areas = page.snapshot.rows(queries.RATIO_BY_AREA, version=version, split=split)
    if areas:
        place = page.contract.area.replace("_", " ")
        section(f"By {place}", f"Split {split}, {number(len(areas))} places by verdict and median error.")
        columns = [
            Column("area", place.capitalize()),
            Column("n", "n", 0),
            Column("mdape_pct", "Median error, %", 2),
            *LEVEL,
            *FAIRNESS,
        ]
        table(areas, columns, label="Ratio study by area")


def _band(page: Page, metric: str) -> Row:
    rows = page.snapshot.rows(report_queries.LIMITS)
    found = next((r for r in rows if r["metric"] == metric), None)
    return {"low": found and found["lower_limit"], "high": found and found["upper_limit"]}


def _drift(page: Page, version: str) -> None:
    whose = "each month's features" if page.dated else "features of the scored homes"
    section("Drift of the inputs", f"How far {whose} are from those the model learned from; ▲ warns, ✕ fails.")
    known = {name: c for name, c in DRIFTS.items() if page.snapshot.has("monitoring.feature_drift", c)}
    if not known:
        nothing(
            "This snapshot has no monitoring.feature_drift yet.",
            f"The next `housing run --dataset {page.contract.name}` writes it.",
        )
        return
    measure = st.segmented_control("Measure", list(known), default=next(iter(known)), required=True, key="measure")
    column = known[measure or next(iter(known))]
    rows = page.snapshot.rows(queries.DRIFT.format(measure=column), version=version)
    if not rows:
        nothing("No month has been compared yet.", "Drift is measured for every month that is scored.")
        return
    labelled = [r | {"label": feature_label(page.contract, r["feature"])} for r in rows]
    figure = charts.drift(labelled, measure=column, dated=page.dated)
    chart(figure, key="drift", alt=f"Heat map: drift by feature{' and month' if page.dated else ''}")
    st.caption(_drift_in_words(page, rows))
    whole = page.snapshot.rows(queries.PREDICTION_DRIFT_NEWEST, version=version)
    if whole:
        columns = [Column("status", "Verdict"), Column("name", "What is compared")]
        columns += [Column("month", "Month")] if page.dated else []
        columns += [Column("psi", "PSI", 3), Column("ks", "KS", 3), Column("wasserstein", "Wasserstein", 3)]
        columns += [Column("n", "n", 0)]
        table(
            [r | {"name": WHOLE.get(r["feature"], r["feature"])} for r in whole], columns, label="Drift of the output"
        )


def _drift_in_words(page: Page, rows: list[Row]) -> str:
    """How many of the features and months are outside their limits, and how many nobody can judge."""
    judged = [r for r in rows if r["status"] != "insufficient_data"]
    bad = [r for r in judged if r["status"] in {"warn", "fail"}]
    few = len(rows) - len(judged)
    if not judged:
        return "Too few rows to judge: nothing is known of drift yet."
    rest = f" {few} more have too few rows to judge." if few else ""
    shown, compared = len({r["feature"] for r in rows}), rows[0]["compared"]
    if shown < compared:
        rest += f" Shown are the {shown} features that drift most, of {compared}."
    if not bad:
        return f"All {len(judged)} shown that can be judged are within their limits.{rest}"
    newest = max(r["month"] for r in rows)
    now = f", {sum(r['month'] == newest for r in bad)} of them in {month_label(newest)}" if page.dated else ""
    return f"{len(bad)} of {len(judged)} shown are outside their limits{now}.{rest}"
