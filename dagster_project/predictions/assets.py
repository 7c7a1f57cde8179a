"""Batch scoring as a monthly partitioned asset. How a month is scored stands in ``ml/score.py``."""

from datetime import date

import dagster as dg
import duckdb

from dagster_project.checks import check_results, check_specs
from dagster_project.predictions.partitions import scoring_months
from dagster_project.progress import progress
from dagster_project.resources import POOL, Housing
from expectations.predictions import check, rules
from expectations.runner import ExpectationResult
from ml.contract import Contract
from ml.registry import ModelVersion, challenger, required_champion
from ml.score import scorable_months, score_months
from ml.words import counted

KEY = dg.AssetKey(["predictions", "predictions"])
#: Tag of a run that somebody asked for in the UI, for a range of months.
BACKFILL = "dagster/backfill"
#: Tag of a run that scores what is pending, even where that is one month.
PENDING = "housing/pending"


def prediction_assets(contract: Contract) -> dg.AssetsDefinition:
    """The asset of one dataset; its partitions begin with the contract's first month."""

    @dg.asset(
        key=KEY,
        group_name="predictions",
        deps=[dg.AssetKey(["features", "features"]), dg.AssetKey(["training", "model_versions"])],
        partitions_def=scoring_months(contract),
        # a range of months is one run: one start, one bundle
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=check_specs(KEY, rules(0, 0, 0)),
        pool=POOL,
        kinds={"xgboost", "duckdb"},
        description="Predictions of champion, challenger and linear baseline; scoring a month again replaces its rows.",
    )
    def predictions(context: dg.AssetExecutionContext, housing: Housing) -> dg.MaterializeResult:
        with housing.write(context) as connection:
            version = required_champion(connection)
            rows = _score(context, housing, connection, version, _months(context, connection, version))
            if rival := challenger(connection):
                _score(context, housing, connection, rival, _pending(context, connection, rival))
            verdicts = _gate(connection, version, rows, context.run_id)
        n = sum(rows.values())
        return dg.MaterializeResult(
            metadata={
                "model_version": version.model_version,
                "rows_scored": n,
                "months_scored": len(rows),
                **({} if n else {"nothing_scored": _why_nothing(context)}),
                # what is said of a range stands at each of its months
                **({} if len(context.partition_keys) > 1 else {"dagster/partition_row_count": n}),
            },
            check_results=check_results(KEY, rules(0, 0, 0), verdicts),
        )

    return predictions


def _score(
    context: dg.AssetExecutionContext,
    housing: Housing,
    connection: duckdb.DuckDBPyConnection,
    version: ModelVersion,
    months: list[date],
) -> dict[date, int]:
    report = progress(context, f"score {counted(len(months), 'month')} with {version.model_version} ({version.status})")
    return score_months(
        connection, housing.settings, housing.contract, version, months, run_id=context.run_id, progress=report
    )


def _months(
    context: dg.AssetExecutionContext, connection: duckdb.DuckDBPyConnection, version: ModelVersion
) -> list[date]:
    """One month is scored whether or not it was before, and so is each of a backfill; of another range what is new."""
    first, last = (date.fromisoformat(key) for key in context.partition_key_range)
    if first == last and PENDING not in context.run.tags:
        return [first]
    return _pending(context, connection, version, again=BACKFILL in context.run.tags)


def _why_nothing(context: dg.AssetExecutionContext) -> str:
    """A month without rows is no failure: they may come later, and are scored then."""
    first, last = context.partition_key_range
    if first == last and PENDING not in context.run.tags:
        return f"no rows of {first[:7]} have landed; they are scored when they do"
    return "every row that the champion may score has been scored as it stands"


def _pending(
    context: dg.AssetExecutionContext,
    connection: duckdb.DuckDBPyConnection,
    version: ModelVersion,
    *,
    again: bool = False,
) -> list[date]:
    first, last = (date.fromisoformat(key) for key in context.partition_key_range)
    return [m for m in scorable_months(connection, version, again=again) if first <= m <= last]


def _gate(
    connection: duckdb.DuckDBPyConnection, version: ModelVersion, rows: dict[date, int], run_id: str
) -> list[ExpectationResult]:
    """Great Expectations over what was scored: warnings, since the rows stand and SQL will judge them."""
    if not sum(rows.values()):
        return []
    bounds = connection.execute(
        "select min(price) / 4, max(price) * 4 from training.training_dataset where is_price_valid and month <= ?",
        [version.trained_through or date.max],
    ).fetchone()
    assert bounds is not None  # an aggregate without groups always has a row
    months = ", ".join(f"date '{month}'" for month in rows)
    scored = (
        f"(select * from predictions.predictions where model_version = '{version.model_version}' "
        f"and run_id = '{run_id}' and month in ({months}))"
    )
    return check(connection, scored, version.model_version, rules(sum(rows.values()), *bounds))
