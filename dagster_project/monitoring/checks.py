"""The rows of ``monitoring.checks`` as Dagster asset checks: one a check, of the champion's newest month.

What is checked, and what fails, is SQL; names and severities are the seed ``monitoring_checks``.
"""

import csv
from collections.abc import Iterator
from typing import Any

import dagster as dg

from dagster_project.checks import SEVERITY
from dagster_project.resources import Housing
from ml.settings import PROJECT_ROOT
from ml.verdicts import CHECKS
from ml.warehouse import connect

KEY = dg.AssetKey(["monitoring", "checks"])
SEED = PROJECT_ROOT / "warehouse" / "seeds" / "monitoring_checks.csv"


def _named() -> list[dict[str, str]]:
    with SEED.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@dg.multi_asset_check(
    name="monitoring_checks",
    specs=[dg.AssetCheckSpec(row["check_name"], asset=KEY, description=row["description"]) for row in _named()],
)
def monitoring_checks(context: dg.AssetCheckExecutionContext, housing: Housing) -> Iterator[dg.AssetCheckResult]:
    """A check without a row has nothing to judge yet: it passes and says so."""
    with connect(housing.settings, read_only=True) as connection:
        found = {row["check_name"]: row for row in connection.execute(CHECKS).to_arrow_table().to_pylist()}
    for named in _named():
        row = found.get(named["check_name"], {"status": "insufficient_data"})
        yield dg.AssetCheckResult(
            asset_key=KEY,
            check_name=named["check_name"],
            passed=row["status"] in {"pass", "insufficient_data"},
            severity=SEVERITY[named["severity"] if row["status"] == "fail" else "warn"],
            metadata=_metadata(row),
        )


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    months = {name: f"{row[name]:%Y-%m}" for name in ("month", "since") if row.get(name)}
    plain = ("model_version", "status", "value", "lower_limit", "upper_limit", "n")
    return months | {name: row[name] for name in plain if row.get(name) is not None}
