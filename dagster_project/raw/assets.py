"""Landing as an asset: load new files, gate them, show each expectation as a check.

How stands in ``landing.py``, and for prices that come later in ``actuals.py``.
"""

from dataclasses import replace

import dagster as dg

from dagster_project.checks import check_results, check_specs
from dagster_project.progress import progress
from dagster_project.raw.actuals import ingest_actuals, needs_staging
from dagster_project.raw.landing import ingest
from dagster_project.resources import POOL, Housing
from dagster_project.transform.dbt import build_staging
from expectations import actual_file
from expectations.raw_file import rules
from expectations.runner import ExpectationResult, Rule
from ml.contract import Contract
from ml.serving.journal import load_predictions
from ml.warehouse import connect

KEY = dg.AssetKey(["raw", "observations"])


def raw_assets(contract: Contract) -> dg.AssetsDefinition:
    """The asset of one dataset; its checks are the expectations that the contract implies."""

    @dg.asset(
        key=KEY,
        group_name="raw",
        check_specs=check_specs(KEY, [*rules(contract), *_actual_rules(contract)]),
        pool=POOL,
        kinds={"duckdb", "greatexpectations"},
        description="Every landed row as text with file and row number. Bad files move to quarantine with a report.",
    )
    def raw_observations(context: dg.AssetExecutionContext, housing: Housing) -> dg.MaterializeResult:
        settings, contract = housing.settings, housing.contract
        with housing.write(context) as connection:
            report = progress(context, "load and validate landed files")
            result = ingest(settings, contract, connection, report)
            is_staged = not needs_staging(settings, contract, connection)
        with housing.lock(context):
            if not is_staged:
                build_staging(settings)
            with connect(settings) as connection:
                actuals = ingest_actuals(settings, contract, connection)
                answered = load_predictions(connection, settings)
                total = connection.execute("select count(*) from raw.observations").fetchone()
        files = [*result.files, *actuals.files]
        quarantined = [
            f"{outcome.file} was quarantined: {outcome.reason} (report: {outcome.report})"
            for outcome in result.of("quarantined") + actuals.of("quarantined")
        ]
        for sentence in quarantined:
            context.log.warning(sentence)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": total[0] if total else 0,
                "files_loaded": len(result.of("loaded") + actuals.of("loaded")),
                "files_quarantined": len(quarantined),
                "quarantined": quarantined[:50],
                "rows_loaded": result.rows_loaded,
                "actuals_loaded": actuals.rows_loaded,
                "online_predictions_loaded": answered,
                "outcomes": [f"{f.file}: {f.status}. {f.reason or ''}" for f in files if f.status != "unchanged"][:50],
            },
            check_results=[
                *check_results(KEY, rules(contract), result.expectations),
                *check_results(KEY, _actual_rules(contract), [_named(v) for v in actuals.expectations]),
            ],
        )

    return raw_observations


def _actual_rules(contract: Contract) -> list[Rule]:
    """The gate of later prices, under names of its own."""
    return [replace(rule, name=f"actuals__{rule.name}") for rule in actual_file.rules(contract)]


def _named(verdict: ExpectationResult) -> ExpectationResult:
    return replace(verdict, expectation=f"actuals__{verdict.expectation}")
