"""The published snapshot: a compact read-only copy of the public tables, replaced by an atomic rename.

Only what is copied, how, and when it may be skipped belongs here. Asking questions of the snapshot is in ``query.py``,
the Dagster asset around ``publish`` in ``assets.py``, and what the tables mean in the dbt models that make them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb

from ml.durable import sync
from ml.settings import Settings, run_command
from ml.views import MissingViewError, definition_of, standing_views
from ml.warehouse import connect, quoted, utc_now, warehouse_lock

#: Layout of the file: DuckDB 0.10 and later can open it, whichever version wrote it.
STORAGE_VERSION = "v1.0.0"

#: Every relation with a plain noun in these schemas is public ...
PUBLIC_SCHEMAS = ["training", "predictions", "monitoring"]
#: ... and these; ``features.features`` is left out because ``training.training_dataset`` holds its columns.
PUBLIC_TABLES = ["raw.files", "raw.actuals", "features.encodings", "features.market_index"]

#: Tables and views alike; ``__dbt_`` marks what a killed dbt run left half made.
PUBLIC_RELATIONS = r"""
select
    schema_name,
    table_name,
    list(column_name order by column_index) as columns,
    list(data_type order by column_index) as types
from duckdb_columns()
where
    database_name = current_database()
    and not internal
    and (schema_name in (select unnest($schemas)) or schema_name || '.' || table_name in (select unnest($tables)))
    and not regexp_matches(table_name, '^(stg_|int_)|__dbt_')
group by all
order by all
"""


class SnapshotError(RuntimeError):
    """The snapshot cannot be made or found; the message says what to run."""


@dataclass(frozen=True)
class PublishResult:
    """What ``publish`` did: ``published`` is False when the standing snapshot already had the same rows."""

    path: Path
    published: bool
    rows: dict[str, int]
    bytes: int
    fingerprint: str
    seconds: float

    @property
    def metadata(self) -> dict[str, str | int | float | bool]:
        """What the asset shows in the Dagster UI."""
        return {
            "path": str(self.path),
            "published": self.published,
            "tables": len(self.rows),
            "rows": sum(self.rows.values()),
            "megabytes": round(self.bytes / 1e6, 1),
            "seconds": round(self.seconds, 2),
            "fingerprint": self.fingerprint,
        }


#: Number of rows of each month and a hash of them; a relation without months has one part, under None.
_Parts = dict[date | None, tuple[int, str | None]]


@dataclass(frozen=True)
class _Relation:
    schema: str
    table: str
    columns: tuple[str, ...]
    types: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def sql(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.table)}"

    @property
    def month(self) -> str:
        """SQL expression of the month that a row belongs to; null where the relation has none."""
        return "month" if ("month", "DATE") in zip(self.columns, self.types, strict=True) else "null::date"


@dataclass(frozen=True)
class _Content:
    """All rows of a warehouse that are public, or of a snapshot, by relation and month."""

    parts: dict[_Relation, _Parts]

    @property
    def rows(self) -> dict[str, int]:
        return {relation.name: sum(n for n, _ in parts.values()) for relation, parts in self.parts.items()}

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{STORAGE_VERSION} duckdb {duckdb.__version__}".encode())
        for relation in sorted(self.parts, key=lambda r: r.name):
            digest.update(repr((relation, sorted(self.parts[relation].items(), key=repr))).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Changes:
    """What differs between the standing snapshot and the warehouse, whose content this is."""

    content: _Content
    months: dict[_Relation, set[date | None]]

    @classmethod
    def between(cls, standing: _Content, content: _Content) -> _Changes | None:
        """None where writing everything is better: other tables or columns, or more than half of the rows changed."""
        if standing.parts.keys() != content.parts.keys():
            return None
        months: dict[_Relation, set[date | None]] = {}
        for relation, parts in content.parts.items():
            before = standing.parts[relation]
            changed = {m for m in parts.keys() | before.keys() if parts.get(m) != before.get(m)}
            if changed:
                months[relation] = changed
        written = sum(content.parts[r].get(m, (0, None))[0] for r, changed in months.items() for m in changed)
        return cls(content, months) if 2 * written <= sum(content.rows.values()) else None


def publish(settings: Settings) -> PublishResult:
    """Copy the public tables into a new file beside ``settings.published`` and rename it into place.

    Readers that hold the old file keep their rows; whoever connects afterwards sees the new ones. A process killed at
    any moment leaves the old snapshot; the next call removes what it left. Unchanged rows are not written again.
    Raises SnapshotError without a warehouse, WarehouseBusyError when another process writes to it.
    """
    started = time.monotonic()
    target = settings.published
    if not settings.warehouse.is_file():
        raise SnapshotError(
            f"there is no warehouse {settings.warehouse} to publish from; type: {run_command(settings.dataset)}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with warehouse_lock(settings, "publishing the snapshot"):
        _remove_leftovers(target)
        # the process id only tells people whose file it is; the lock says that nobody else writes one
        aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            with connect(settings, read_only=True) as connection, ThreadPoolExecutor(1, "copy") as beside:
                standing = _standing(connection, target)
                # half a gigabyte keeps the disk busy for as long as hashing keeps the processor
                copy = (
                    beside.submit(_copy, target, aside) if standing and _has_new_files(connection, standing) else None
                )
                content = _content(connection, settings.dataset)
                if copy:
                    copy.result()
                changed = standing is None or standing.fingerprint != content.fingerprint
                if changed:
                    changes = _Changes.between(standing, content) if standing else None
                    if changes and not copy:
                        _copy(target, aside)
                    if not changes or not _write_changes(connection, settings, aside, changes):
                        _write_all(connection, settings, aside, content)
                    _replace(aside, target)
        finally:
            _remove_leftovers(target)
    return PublishResult(
        target, changed, content.rows, target.stat().st_size, content.fingerprint, time.monotonic() - started
    )


def _content(connection: duckdb.DuckDBPyConnection, dataset: str) -> _Content:
    """Names, types and a hash of the rows of each month (in any order, repeated rows counted).

    Costs about a tenth of writing the file (900,000 rows x 60 columns on 2 cores: 0.3 s of 4 s). The rows are hashed,
    not the warehouse file's time, because every dbt run replaces views and tables by equal ones.
    """
    found = connection.execute(PUBLIC_RELATIONS, {"schemas": PUBLIC_SCHEMAS, "tables": PUBLIC_TABLES}).fetchall()
    parts: dict[_Relation, _Parts] = {}
    for schema, table, names, types in found:
        relation = _Relation(schema, table, tuple(names), tuple(types))
        columns = ", ".join(map(quoted, relation.columns))
        try:
            rows = connection.execute(
                f"select {relation.month}, count(*), sum(hash({columns}))::varchar from {relation.sql} group by 1"
            ).fetchall()
        except (duckdb.BinderException, duckdb.CatalogException) as error:
            reason = str(error).splitlines()[0]
            raise SnapshotError(
                f"{relation.name} cannot be read; to build it again type: {run_command(dataset)} ({reason})"
            ) from error
        parts[relation] = {month: (n, content) for month, n, content in rows}
    return _Content(parts)


def _standing(connection: duckdb.DuckDBPyConnection, target: Path) -> _Content | None:
    """What the standing snapshot holds; None when there is none that this DuckDB wrote: then it is replaced."""
    if not target.is_file():
        return None
    try:
        connection.execute(f"attach {_text(target)} as standing_snapshot (read_only)")
        version = connection.execute("select duckdb_version from standing_snapshot.published.about").fetchone()
        found = connection.execute("select * from standing_snapshot.published.parts order by all").fetchall()
        connection.execute("detach standing_snapshot")
    except duckdb.Error:
        return None
    if version != (duckdb.__version__,):
        return None
    parts: dict[_Relation, _Parts] = {}
    for schema, table, columns, types, month, n, content in found:
        part = parts.setdefault(_Relation(schema, table, tuple(columns), tuple(types)), {})
        if n is not None:
            part[month] = (n, content)
    return _Content(parts)


def _has_new_files(connection: duckdb.DuckDBPyConnection, standing: _Content) -> bool:
    """Whether files came since the snapshot, so that its rows will differ; they may differ without, too."""
    size = "select estimated_size from duckdb_tables() where schema_name = 'raw' and table_name = 'files'"
    return connection.execute(size).fetchone() != (standing.rows.get("raw.files"),)


def _copy(standing: Path, aside: Path) -> None:
    shutil.copyfile(standing, aside)
    sync(aside)


def _write_all(connection: duckdb.DuckDBPyConnection, settings: Settings, aside: Path, content: _Content) -> None:
    aside.unlink(missing_ok=True)  # a copy that was not needed
    connection.execute(f"attach {_text(aside)} as snapshot (read_write, storage_version '{STORAGE_VERSION}')")
    for schema in sorted({relation.schema for relation in content.parts} | {"published"}):
        connection.execute(f"create schema snapshot.{quoted(schema)}")
    for relation in content.parts:
        connection.execute(f"create table snapshot.{relation.sql} as from {relation.sql}")
    _finish(connection, settings, content)


def _write_changes(connection: duckdb.DuckDBPyConnection, settings: Settings, aside: Path, changes: _Changes) -> bool:
    """Write only the changed parts into a copy of the standing snapshot, so that one more month costs about one month.

    Returns False where a third of the file is room that earlier changes left: then it is better written anew.
    """
    connection.execute(f"attach {_text(aside)} as snapshot (read_write)")
    room = "select free_blocks * 3 > total_blocks from pragma_database_size() where database_name = 'snapshot'"
    if connection.execute(room).fetchone() == (True,):
        connection.execute("detach snapshot")
        return False
    for relation, months in changes.months.items():
        dates = ", ".join(f"date '{month}'" for month in months if month)
        conditions = [f"{relation.month} in ({dates})"] if dates else []
        conditions += [f"{relation.month} is null"] if None in months else []
        changed = " or ".join(conditions)
        connection.execute(f"delete from snapshot.{relation.sql} where {changed}")
        connection.execute(f"insert into snapshot.{relation.sql} from {relation.sql} where {changed}")
    connection.execute("drop table snapshot.published.about; drop table snapshot.published.parts")
    _finish(connection, settings, changes.content)
    return True


def _features_definition(connection: duckdb.DuckDBPyConnection, dataset: str) -> str | None:
    """What a feature is here, for readers that know how a version learned it; None before dbt built any."""
    try:
        return definition_of(standing_views(connection, dataset))
    except MissingViewError:
        return None


def _finish(connection: duckdb.DuckDBPyConnection, settings: Settings, content: _Content) -> None:
    """Say in the snapshot what it holds, then close it."""
    connection.execute(
        """
        create table snapshot.published.about as select
            $dataset as dataset, $published_at::timestamp as published_at, $fingerprint as fingerprint,
            $duckdb_version as duckdb_version, $features_definition as features_definition
        """,
        {
            "dataset": settings.dataset,
            "published_at": utc_now(),
            "fingerprint": content.fingerprint,
            "duckdb_version": duckdb.__version__,
            "features_definition": _features_definition(connection, settings.dataset),
        },
    )
    connection.execute(
        """
        create table snapshot.published.parts (
            schema_name varchar, table_name varchar, columns varchar[], types varchar[], month date, rows bigint,
            content varchar
        )
        """
    )
    for relation, parts in content.parts.items():
        months = [(month, *found) for month, found in parts.items()] or [(None, None, None)]
        # one statement a relation: executemany needs 1.5 ms for each of 2,500 months, four seconds in all
        connection.execute(
            """
            insert into snapshot.published.parts
            select
                $schema, $name, $columns, $types,
                unnest($months::date[]), unnest($n::bigint[]), unnest($content::varchar[])
            """,
            {
                "schema": relation.schema,
                "name": relation.table,
                "columns": list(relation.columns),
                "types": list(relation.types),
                **dict(zip(("months", "n", "content"), map(list, zip(*months, strict=True)), strict=True)),
            },
        )
    connection.execute("checkpoint snapshot")
    connection.execute("detach snapshot")


def _replace(aside: Path, target: Path) -> None:
    """Rename so that after a power cut either the whole old or the whole new file stands."""
    sync(aside)
    # left by someone who opened the old snapshot for writing: it must not be replayed into the new one
    target.with_name(f"{target.name}.wal").unlink(missing_ok=True)
    aside.replace(target)
    sync(target.parent)


def _remove_leftovers(target: Path) -> None:
    """Delete unfinished files. Called under the warehouse lock: whoever wrote them is dead."""
    for leftover in target.parent.glob(f"{target.name}.*.tmp*"):
        leftover.unlink(missing_ok=True)


def _text(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
