"""The newest decision about the champion, as SQL made it in ``monitoring.retrain_decisions``."""

from __future__ import annotations

from typing import Any

import duckdb

from ml.settings import Settings

NEWEST = """
select decisions.*
from monitoring.retrain_decisions as decisions
inner join training.model_versions as versions on decisions.model_version = versions.model_version
where versions.status = 'champion'
-- months that were scored but are not priced yet neither say anything nor take back what an earlier one said
order by list_contains(decisions.reasons, 'too_few_prices'), decisions.month desc
limit 1
"""


def newest_decision(connection: duckdb.DuckDBPyConnection) -> dict[str, Any] | None:
    """Row of the newest month that the champion served and whose prices are known; None before any was judged."""
    rows = connection.execute(NEWEST).to_arrow_table().to_pylist()
    return rows[0] if rows else None


def published_decision(settings: Settings) -> dict[str, Any] | None:
    """The same from the published snapshot; None before the first one, or where it is older than this table."""
    if not settings.published.exists():
        return None
    with duckdb.connect(str(settings.published), read_only=True) as connection:
        there = connection.execute(
            "select 1 from duckdb_tables() where schema_name = 'monitoring' and table_name = 'retrain_decisions'"
        ).fetchone()
        return newest_decision(connection) if there else None
