"""Reasons and comparables of scored months as monthly partitioned assets. How they are made: ``ml/explain.py``."""

from collections.abc import Iterator
from datetime import date

import dagster as dg

from dagster_project.predictions.assets import KEY as PREDICTIONS
from dagster_project.predictions.partitions import scoring_months
from dagster_project.progress import progress
from dagster_project.resources import POOL, Housing
from ml.contract import Contract
from ml.explain import explain_months, unexplained_months
from ml.registry import champion
from ml.words import counted

TABLES = {
    "explanations": "What each feature adds to each predicted price, in currency (SHAP).",
    "comparables": "The most similar earlier sales of each scored home, at the prices of the valuation month.",
}


def explanation_assets(contract: Contract) -> dg.AssetsDefinition:
    """Both tables of one dataset; they are written together, month by month."""

    @dg.multi_asset(
        name="explanations",
        specs=[
            dg.AssetSpec(
                ["predictions", name],
                deps=[PREDICTIONS],
                group_name="predictions",
                kinds={"xgboost", "duckdb"},
                description=description,
            )
            for name, description in TABLES.items()
        ],
        partitions_def=scoring_months(contract),
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=POOL,
    )
    def explanations(context: dg.AssetExecutionContext, housing: Housing) -> Iterator[dg.MaterializeResult]:
        first, last = (date.fromisoformat(key) for key in context.partition_key_range)
        with housing.write(context) as connection:
            version = champion(connection)
            months = unexplained_months(connection, version) if version else []
            # scoring a month may have moved the prices of later ones (ml/recent_errors.py)
            until = last if housing.contract.recent_errors is None else date.max
            months = [month for month in months if first <= month <= until]
            rows = {}
            if version and months:
                report = progress(context, f"explain {counted(len(months), 'month')} of {version.model_version}")
                rows = explain_months(connection, housing.settings, housing.contract, version, months, progress=report)
        for name in TABLES:
            yield dg.MaterializeResult(
                asset_key=["predictions", name],
                metadata={"predictions_explained": sum(rows.values()), "months_explained": len(rows)},
            )

    return explanations
