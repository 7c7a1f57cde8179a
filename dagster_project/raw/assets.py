"""Landing as an asset: load new files, gate them, show each expectation as a check. How stands in ``landing.py``."""

import dagster as dg

from dagster_project.checks import check_results, check_specs
from dagster_project.progress import progress
from dagster_project.raw.landing import ingest
from dagster_project.resources import POOL, Housing
from expectations.raw_file import rules
from ml.contract import Contract

KEY = dg.AssetKey(["raw", "observations"])


def raw_assets(contract: Contract) -> dg.AssetsDefinition:
    """The asset of one dataset; its checks are the expectations that the contract implies."""

    @dg.asset(
        key=KEY,
        group_name="raw",
        check_specs=check_specs(KEY, rules(contract)),
        pool=POOL,
        kinds={"duckdb", "greatexpectations"},
        description="Every landed row as text with file and row number. Bad files move to quarantine with a report.",
    )
    def raw_observations(context: dg.AssetExecutionContext, housing: Housing) -> dg.MaterializeResult:
        with housing.write(context) as connection:
            report = progress(context, "load and validate landed files")
            result = ingest(housing.settings, housing.contract, connection, report)
            total = connection.execute("select count(*) from raw.observations").fetchone()
        for outcome in result.of("quarantined"):
            context.log.warning(f"{outcome.file} was quarantined: {outcome.reason} (report: {outcome.report})")
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": total[0] if total else 0,
                "files_loaded": len(result.of("loaded")),
                "files_quarantined": len(result.of("quarantined")),
                "rows_loaded": sum(f.rows or 0 for f in result.of("loaded")),
                "outcomes": [
                    f"{f.file}: {f.status}. {f.reason or ''}" for f in result.files if f.status != "unchanged"
                ][:50],
            },
            check_results=check_results(KEY, rules(housing.contract), result.expectations),
        )

    return raw_observations
