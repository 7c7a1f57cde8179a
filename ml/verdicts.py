"""The newest verdicts on the champion that could be reached, from what SQL judged in ``monitoring``.

A month that is scored and not priced yet says nothing of its error, so it takes back nothing that an earlier one said.
"""

from __future__ import annotations

from typing import Any

import duckdb

from ml.contract import Contract
from ml.settings import Settings
from ml.warehouse import is_built

#: The row of each check.
CHECKS = """
select checks.*
from monitoring.checks as checks
where model_version = (select model_version from training.model_versions where status = 'champion')
qualify row_number() over (partition by check_name order by status = 'insufficient_data', month desc) = 1
"""
#: The row that decides on training again.
DECISION = """
select decisions.*
from monitoring.retrain_decisions as decisions
inner join training.model_versions as versions on decisions.model_version = versions.model_version
where versions.status = 'champion'
order by list_contains(decisions.reasons, 'too_few_prices'), decisions.month desc
limit 1
"""


#: Whether a challenger was ever let serve beside this champion.
CANARY = """
select 1
from training.promotion_decisions as decided
inner join training.model_versions as versions on decided.champion = versions.model_version
where decided.challenger = ? and decided.verdict = 'canary' and versions.status = 'champion'
"""


def is_canary(connection: duckdb.DuckDBPyConnection, contract: Contract, model_version: str) -> bool:
    """Does the challenger serve a share of the keys? Not by a verdict of a time when the contract wanted that."""
    wanted = contract.promotion.mode == "canary"
    return wanted and connection.execute(CANARY, [model_version]).fetchone() is not None


def newest_decision(connection: duckdb.DuckDBPyConnection) -> dict[str, Any] | None:
    """Row of the newest month that the champion served and whose prices are known; None before any was judged."""
    if not is_built(connection, "monitoring.retrain_decisions"):
        return None
    rows = connection.execute(DECISION).to_arrow_table().to_pylist()
    return rows[0] if rows else None


def died_attempts(connection: duckdb.DuckDBPyConnection, decision_id: str) -> int:
    """Trainings for a decision that were started and never ended, also those since it was judged."""
    found = connection.execute(
        "select count(*) from training.retrain_attempts where decision_id = ? and finished_at is null", [decision_id]
    ).fetchone()
    return found[0] if found else 0


def published_decision(settings: Settings) -> dict[str, Any] | None:
    """The same from the published snapshot; None before the first one, or where it is older than this table."""
    if not settings.published.exists():
        return None
    with duckdb.connect(str(settings.published), read_only=True) as connection:
        return newest_decision(connection)
