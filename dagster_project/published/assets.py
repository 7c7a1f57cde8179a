"""The published snapshot and the monthly report as assets: ``snapshot.py`` and ``ml/report.py`` write them."""

import dagster as dg

from dagster_project.pictures import picture
from dagster_project.progress import progress
from dagster_project.published.snapshot import publish
from dagster_project.resources import POOL, Housing
from ml.registry import log_texts

#: Models whose tables a reader of the snapshot expects; the checks of all of them come first.
UPSTREAM = [
    ["features", "encodings"],
    ["training", "training_dataset"],
    ["training", "model_versions"],
    ["training", "training_profile"],
    ["monitoring", "promotion"],
    ["predictions", "predictions"],
    ["predictions", "predictions_matched"],
    ["predictions", "prediction_intervals"],
    ["predictions", "prediction_profile"],
    ["predictions", "explanations"],
    ["predictions", "comparables"],
    ["predictions", "current_predictions"],
    ["monitoring", "accuracy"],
    ["monitoring", "accuracy_by_month"],
    ["monitoring", "accuracy_by_segment"],
    ["monitoring", "interval_coverage"],
    ["monitoring", "drift_by_month"],
    ["monitoring", "feature_drift"],
    ["monitoring", "prediction_drift"],
    ["monitoring", "error_estimates"],
    ["monitoring", "feature_importance_by_month"],
    ["monitoring", "ratio_study"],
    ["monitoring", "served_months"],
    ["monitoring", "checks"],
    ["monitoring", "challenger_comparisons"],
    ["monitoring", "retrain_decisions"],
    ["monitoring", "reconciliation"],
    ["monitoring", "rejections_by_reason"],
]


#: Characters of a picture that the UI shows.
MOST_SHOWN = 100_000


@dg.asset(
    key=["published", "snapshot"],
    group_name="published",
    deps=[dg.AssetKey(path) for path in UPSTREAM],
    pool=POOL,
    kinds={"duckdb"},
    description="Compact read-only copy of the public tables, replaced by an atomic rename. Readers never block.",
)
def snapshot(context: dg.AssetExecutionContext, housing: Housing) -> dg.MaterializeResult:
    progress(context, "publish the snapshot")
    with housing.lock(context):
        result = publish(housing.settings)
    return dg.MaterializeResult(metadata=result.metadata)


@dg.asset(
    key=["published", "report"],
    group_name="published",
    deps=[snapshot],
    kinds={"html"},
    description="One self-contained HTML page on the newest scored month whose prices are known.",
)
def report(context: dg.AssetExecutionContext, housing: Housing) -> dg.MaterializeResult:
    # draws with matplotlib: half a second for every other command
    from ml.report import collect, latest_month, pictures, write_report

    month = latest_month(housing.settings)
    if month is None:
        context.log.info("no scored month has known prices yet, so there is nothing to report")
        return dg.MaterializeResult(metadata={"reports": 0})
    values = collect(housing.settings, housing.contract, month=month)
    path = write_report(housing.settings, housing.contract, month=month, values=values)
    charts = pictures(values)
    files = {f"{name}.svg": svg for name, svg in charts.items()} | {path.name: path.read_text(encoding="utf-8")}
    log_texts(housing.settings, values["version"], f"reports/{month:%Y-%m}", files)
    # the event log keeps metadata of every run for ever: a map of thousands of points stays with the run's artifacts
    small = {name: svg for name, svg in charts.items() if len(svg) < MOST_SHOWN}
    shown = {name: picture(name, svg.encode(), "image/svg+xml") for name, svg in small.items()}
    metadata = {"reports": 1, "month": f"{month:%Y-%m}", "path": dg.MetadataValue.path(path)}
    return dg.MaterializeResult(metadata={**metadata, **shown})
