"""Batch scoring as a monthly partitioned asset. How a month is scored stands in ``ml/score.py``."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg

from dagster_project.predictions.partitions import scoring_months
from dagster_project.progress import progress
from dagster_project.resources import POOL, Housing
from expectations.predictions import CHECKS, check_month
from ml.contract import Contract
from ml.registry import champion
from ml.score import scorable_months, score_months

KEY = dg.AssetKey(["predictions", "predictions"])


class NoChampionError(RuntimeError):
    """No version passed its gate yet; the message says what to do."""


def prediction_assets(contract: Contract) -> dg.AssetsDefinition:
    """The asset of one dataset; its partitions begin with the contract's first month."""

    @dg.asset(
        key=KEY,
        group_name="predictions",
        deps=[dg.AssetKey(["features", "features"]), dg.AssetKey(["training", "model_versions"])],
        partitions_def=scoring_months(contract),
        # a range of months is one run: one start, one bundle
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=[dg.AssetCheckSpec(name, asset=KEY, description=text) for name, text in CHECKS.items()],
        pool=POOL,
        kinds={"xgboost", "duckdb"},
        description="Predictions of the champion and of the linear baseline; scoring a month again replaces its rows.",
    )
    def predictions(context: dg.AssetExecutionContext, housing: Housing) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        first, last = context.partition_key_range.start, context.partition_key_range.end
        with housing.write(context) as connection:
            version = champion(connection)
            if version is None:
                raise NoChampionError("no version passed its gate, so nothing can be scored; type: housing train")
            if first == last:
                months = [dg.TimeWindow, None] and [_date(first)]
            else:
                months = [m for m in scorable_months(connection, version) if first <= m.isoformat() <= last]
            rows = score_months(
                connection, housing.settings, housing.contract, version, months, context.run_id,
                progress=progress(context, f"score {len(months)} months with {version.model_version}"),
            )
            checks = check_month(connection, version, months)
        yield dg.MaterializeResult(
            metadata={"model_version": version.model_version, "rows_scored": sum(rows.values()), "months_scored": len(rows)},
            check_results=checks,
        )

    return predictions
