"""The views that lead from landed text to features. Their SQL is what a feature is; it travels inside each bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import duckdb

#: In order; ``{dataset}`` is filled in.
VIEWS = (
    "staging.stg_{dataset}__observations",
    "intermediate.int_observations_checked",
    "features.features_as_of",
)


class MissingViewError(ValueError):
    """dbt has not built the warehouse; the message is one sentence."""


def standing_views(connection: duckdb.DuckDBPyConnection, dataset: str) -> list[tuple[str, str]]:
    """Name and SQL of the VIEWS as they stand in a warehouse. Raises MissingViewError."""
    names = [name.format(dataset=dataset) for name in VIEWS]
    return [(name, _sql(connection, name)) for name in names]


def definition_of(views: Sequence[tuple[str, str]]) -> str:
    """Digest of the SQL of views: equal where features are made alike."""
    return hashlib.sha256(json.dumps(views).encode()).hexdigest()


def _sql(connection: duckdb.DuckDBPyConnection, relation: str) -> str:
    schema, name = relation.split(".")
    found = connection.execute(
        "select sql from duckdb_views() where database_name = current_database() and schema_name = ? and view_name = ?",
        [schema, name],
    ).fetchone()
    if not found:
        raise MissingViewError(f"the warehouse has no view {relation}; run `dbt build` (or `housing run`) first")
    return found[0]
