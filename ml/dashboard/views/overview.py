"""Is the model healthy? The verdict, the figures that it rests on, and what happened lately."""

from __future__ import annotations

from ml import report_queries
from ml.dashboard import charts, queries
from ml.dashboard.page import Column, Page, age_label, banner, chart, head, month_label, nothing, section, table, tiles
from ml.dashboard.snapshot import Row
from ml.words import MISSING, number

#: Names of checks as words; others are shown with spaces for underscores.
CHECKS = {
    "mdape_pct": "Median absolute error, %",
    "median_ratio": "Median ratio: 1 is level",
    "cod": "COD: spread of the ratios, %",
    "prd": "PRD: cheap against dear homes",
    "prb": "PRB: change per doubling of value",
    "mki": "MKI: inequality of prices kept",
    "coverage_80_pct": "Prices within their 80 % range, %",
    "interval_coverage_80": "80 % range: distance from 80 % beyond chance",
    "error_increase_pct": "Error beyond that of the evaluation, %",
    "level_error_pct": "Level: distance from 1 beyond chance, %",
    "unpriced_pct": "Homes without a prediction, %",
    "feature_drift": "Inputs that drifted, % of the features",
    "prediction_drift": "Drift of the predictions: 1 is allowed",
    "residual_drift": "Drift of the errors: 1 is allowed",
    "target_drift": "Drift of the prices: 1 is allowed",
    "estimated_mdape_pct": "Error as estimated before prices are known, %",
    "unreconciled_rows": "Rows unaccounted for",
}
#: Checks of rows, not of the model: that none is lost and each has a price does not make the prices good.
OF_ROWS = {"unreconciled_rows", "reconciliation", "unpriced_pct"}
#: Decisions that ask for something to be done.
ASKING = {"retrain", "needs_human"}
#: Months of decisions that are shown, and as many earlier ones of those.
RECENT = 6


def render(page: Page) -> None:
    head("Overview", f"{page.contract.title}: is the model that says the prices still good?")
    if page.champion is None:
        _without_champion(page)
        return
    checks = _checks(page)
    _verdict(page, checks)
    _figures(page, checks)
    if page.dated:
        _errors(page)
    _table(page, checks)
    _lately(page)


def _without_champion(page: Page) -> None:
    newest = page.snapshot.first(queries.NEWEST_VERSION)
    if newest is None:
        banner("insufficient_data", "No model yet", f"Train one: housing train --dataset {page.contract.name}")
        return
    reasons = "; ".join(newest["reasons"] or []) or "no reason was recorded"
    banner(
        "fail",
        "No model is champion",
        f"{newest['model_version']} was {newest['status']}: {reasons}. See Model for all versions; land more data or "
        f"change ml/params.yml, then: housing train --dataset {page.contract.name}",
    )


def _checks(page: Page) -> list[Row]:
    own = page.snapshot.has("monitoring.checks")
    sql = queries.CHECKS if own else queries.CHECKS_WITHOUT_TABLE
    assert page.champion
    version = page.champion["model_version"]
    return [
        r
        | {
            "name": CHECKS.get(r["check_name"], r["check_name"].replace("_", " ")),
            # after a change the newest month is that of the champion before
            "is_own": r["check_name"] in OF_ROWS or r.get("model_version", version) == version,
        }
        for r in page.snapshot.rows(sql, version=version)
    ]


def _verdict(page: Page, checks: list[Row]) -> None:
    assert page.champion
    own = [c for c in checks if c["is_own"]]
    by_status: dict[str, list[str]] = {}
    for check in own:
        by_status.setdefault(check["status"], []).append(check["name"].split(":")[0])
    failed, warned = (by_status.get(s, []) for s in ("fail", "warn"))
    of_model = [c["status"] for c in own if c["check_name"] not in OF_ROWS]
    before = sorted({c["model_version"] for c in checks if not c["is_own"]})
    if failed:
        text = f"Failing: {', '.join(failed)}." + (f" Warning: {', '.join(warned)}." if warned else "")
        banner("fail", "The model needs attention", f"{text} The checks below say since when; Monitoring shows where.")
    elif warned:
        banner("warn", "Good, with warnings", f"Outside its limits: {', '.join(warned)}. Nothing fails.")
    elif "pass" in of_model:
        passed = sum(c["status"] == "pass" for c in own)
        banner("pass", "The model is healthy", f"All {passed} checks that can be judged pass.")
    elif before:
        text = f"No price is known yet of a month that it served. The checks below are of {', '.join(before)}."
        banner("insufficient_data", f"{page.champion['model_version']} cannot be judged yet", text)
    else:
        why = "No price of a scored home is known."
        if of_model:
            why = f"Too few prices of scored homes are known for any of the {len(of_model)} checks of the model."
        more = f"score a month whose prices are known: {page.to_score}"
        if not page.dated:
            more = f"more homes with their prices: housing ingest FILES --dataset {page.contract.name}"
        banner("insufficient_data", "Nothing can be judged yet", f"{why} Land actual prices, or {more}")


def _figures(page: Page, checks: list[Row]) -> None:
    assert page.champion
    version = page.champion["model_version"]
    newest, scoring = _newest(page, version), page.snapshot.first(queries.LAST_SCORING, version=version)
    open_alerts = [c for c in checks if c["is_own"] and c["status"] in {"warn", "fail"}]
    through = month_label(page.champion["trained_through"])
    items = [("Champion", version, f"trained through {through}" if page.dated else "trained on a share of the keys")]
    if newest:
        when = f"{month_label(newest['month'])}, " if page.dated else ""
        before, held = newest["persistence_mdape_pct"], newest["coverage_pct"]
        beside = f"; last known price {number(before, 1)} %" if before is not None else ""
        items.append(
            ("Median error", f"{number(newest['mdape_pct'], 2)} %", f"{when}{number(newest['n'])} prices{beside}")
        )
        items.append(("Mean error", page.money(newest["mae"]), f"{when}absolute, per home"))
        if held is not None:
            of = f"{when}{number(newest['held_n'])} prices; should be about 80 %"
            items.append(("80 % range holds", f"{number(held, 1)} %", of))
    else:
        items.append(("Median error", MISSING, f"no price is known yet of a month that {version} served"))
    if scoring and scoring["scored"]:
        until = f" through {month_label(scoring['month'])}" if page.dated else ""
        items.append(("Last scoring", age_label(scoring["scored_at"]), f"{number(scoring['scored'])} homes{until}"))
    else:
        items.append(("Last scoring", MISSING, f"type: {page.to_score}"))
    items.append(("Open alerts", str(len(open_alerts)), "warnings and failures" if open_alerts else "none"))
    tiles(items)


def _newest(page: Page, version: str) -> Row | None:
    """Errors and ranges of the newest month that was scored and whose prices are known."""
    judged = page.snapshot.has("monitoring.served_months")
    sql = queries.NEWEST_PRICED if judged else queries.NEWEST_PRICED_WITHOUT_TABLE
    month = page.snapshot.rows(sql, version=version)[0]["month"]
    return page.snapshot.first(queries.NEWEST_FIGURES, version=version, month=month) if month else None


def _errors(page: Page) -> None:
    assert page.champion
    # the price a year ago is far from all others; Monitoring shows it
    series = [r for r in error_series(page, page.champion["model_version"]) if r["series"] != "last_year"]
    section(
        "Error by month", "Median absolute error of the model, and of what one would say without it: lower is better."
    )
    if not series:
        nothing("No month can be measured yet.", "Errors appear when prices of scored months are known.")
        return
    warn, fail = limits(page, "mdape_pct")
    chart(
        charts.accuracy_over_time(series, warn=warn, fail=fail, moves=changes(page), decisions=decisions(page)),
        key="overview_errors",
        alt="Line chart: median absolute error by month, model against baselines",
    )


def error_series(page: Page, version: str) -> list[Row]:
    """Error by month: of each month's own champion for the present one, else of the version."""
    is_champion = page.champion is not None and page.champion["model_version"] == version
    if is_champion and page.snapshot.has("monitoring.served_months"):
        served = page.snapshot.rows(queries.SERVED_SERIES)
        if any(r["series"] == "model" for r in served):
            return served
    return page.snapshot.rows(report_queries.SERIES, version=version)


def changes(page: Page) -> list[Row]:
    """Months from which another champion served."""
    if not page.snapshot.has("monitoring.served_months"):
        return []
    return [
        {"month": r["month"], "text": f"{r['model_version']} serves instead of {r['before']}"}
        for r in page.snapshot.rows(queries.CHANGES)
    ]


def decisions(page: Page) -> list[Row]:
    """Months whose evidence asked for something to be done."""
    if not page.snapshot.has("monitoring.retrain_decisions", "months_since_training"):
        return []
    return [
        r | {"text": f"{r['model_version']}: {_said(r)}"}
        for r in page.snapshot.rows(queries.DECISIONS)
        if r["decision"] in ASKING
    ]


def _said(decision: Row) -> str:
    words = ", ".join(decision["reasons"] or []).replace("_", " ")
    return decision["decision"].replace("_", " ") + (f" ({words})" if words else "")


def limits(page: Page, metric: str) -> tuple[float | None, float | None]:
    """Upper limits of a metric: above the first it is a warning, above the second a fail."""
    found = {r["severity"]: r["upper_limit"] for r in page.snapshot.rows(queries.UPPER_LIMITS, metric=metric)}
    return found.get("warn"), found.get("fail")


def _table(page: Page, checks: list[Row]) -> None:
    section("Checks", "The newest verdict of each, worst first. Limits stand in monitoring.monitoring_thresholds.")
    if not page.snapshot.has("monitoring.checks"):
        st_note = "This snapshot has no monitoring.checks yet; shown is what the tables say of themselves."
        nothing(st_note, f"The next `housing run --dataset {page.contract.name}` writes it.")
    if not checks:
        nothing("No check has been made.", f"Type: housing run --dataset {page.contract.name}")
        return
    columns = [
        Column("status", "Verdict"),
        Column("name", "Check"),
        Column("value", "Value", 2),
        Column("lower_limit", "At least", 2),
        Column("upper_limit", "At most", 2),
        Column("n", "n", 0),
    ]
    if page.dated:
        columns.insert(2, Column("month", "Month"))
    if not all(c["is_own"] for c in checks):
        columns.insert(2, Column("model_version", "Version"))
    if any(c["since"] for c in checks):
        columns.append(Column("since", "Since"))
    table(checks, columns, label="Checks of the champion")


def _lately(page: Page) -> None:
    _decision(page)
    section("What happened lately")
    moves = page.snapshot.rows(queries.MOVES)[:8]
    if moves:
        columns = [Column("at", "When (UTC)"), Column("alias", "Alias"), Column("model_version", "Version")]
        columns += [Column("previous_version", "Before"), Column("reason", "Why")]
        table(moves, columns, label="Moves of the aliases")
    else:
        nothing("No alias has moved yet.", "A version becomes champion when it passes its gate.")


def _decision(page: Page) -> None:
    if not page.snapshot.has("monitoring.retrain_decisions", "months_since_training"):
        return
    newest_first = page.snapshot.rows(queries.DECISIONS)
    if not newest_first:
        return
    earlier = [r for r in newest_first[RECENT:] if r["decision"] in ASKING][:RECENT]
    rows = newest_first[:RECENT] + earlier
    section(
        "Should it be trained again?",
        "One decision a month, from what was known then; retrain is acted upon once."
        + (" Below the newest stand earlier ones that asked for something." if earlier else ""),
    )
    columns = [Column("month", "Month"), Column("model_version", "Version"), Column("said", "Decision")]
    columns += [Column("mdape_pct", "Median error, %", 2), Column("new_labels", "New prices", 0)]
    columns += [Column("months_since_training", "Months since training", 0)]
    table([r | {"said": _said(r)} for r in rows], columns, label="Decisions on training again")
