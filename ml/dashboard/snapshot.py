"""The published snapshot as the dashboard reads it: read-only, closed off, answers remembered until the next one.

What is asked stands in ``queries.py``. How a snapshot is made is no business of this module.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ml.settings import Settings
from ml.warehouse import RESULT_ROWS, quoted

Row = dict[str, Any]

#: Remembered answers of one snapshot; each holds figures of a page, not the rows behind them.
MOST_ANSWERS = 500
#: Answers with more rows are not remembered.
MOST_ROWS = 50_000
#: Tables kept in memory, fewer where it is short: that of what holds now, that of another version, and the places of
#: either. Each takes 300 MB for 884,000 homes.
MOST_TABLES = 3


class SnapshotError(RuntimeError):
    """There is no snapshot, or it cannot be read; the message says which and what to type."""


def unreadable(settings: Settings, error: Exception) -> str:
    """What to say and what to type where DuckDB cannot read the file, or some block of it."""
    reason = " ".join(str(error).split())[:300]
    return (
        f"{settings.published} cannot be read ({reason}). Write it anew: delete the file and run "
        f"`housing run --dataset {settings.dataset}`"
    )


@dataclass
class Snapshot:
    """One published file, open. Safe to ask from several threads; closed when nobody holds it any more."""

    dataset: str
    fingerprint: str
    published_at: datetime
    """UTC"""
    tables: dict[str, list[str]]
    """Columns by ``schema.table``."""
    _connection: duckdb.DuckDBPyConnection
    _answers: OrderedDict[tuple[str, str], pa.Table] = field(default_factory=OrderedDict)
    _recipes: dict[str, tuple[str, Row]] = field(default_factory=dict)
    """Query and parameters of each table that was ever prepared, by its name in SQL."""
    _kept: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Names of those that are in memory; the last one asked for stands last."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _preparing: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, settings: Settings) -> Snapshot:
        """Raises SnapshotError when the file is no snapshot.

        The file is attached to a database in memory: DuckDB gives a second connection to the same path the database
        that is already open in this process, and so the old rows after a new file was renamed into place.
        """
        connection = duckdb.connect(
            config={
                "memory_limit": settings.memory_limit,
                "threads": settings.threads,
                "temp_directory": "",
                "python_enable_replacements": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "allow_community_extensions": False,
            }
        )
        path = str(settings.published).replace("'", "''")
        try:
            connection.execute(f"attach '{path}' as {quoted(settings.dataset)} (read_only)")
            connection.execute(f"use {quoted(settings.dataset)}")
            for setting in (
                "TimeZone = 'UTC'",
                "enable_progress_bar = false",
                "enable_external_access = false",
                # without this the attached file itself could still be read byte by byte
                "disabled_filesystems = 'LocalFileSystem'",
                "lock_configuration = true",
            ):
                connection.execute(f"set {setting}")
            [(fingerprint, published_at)] = connection.execute(
                "select fingerprint, published_at from published.about"
            ).fetchall()
            tables = connection.execute(
                """
                select schema_name || '.' || table_name, list(column_name order by column_index)
                from duckdb_columns() where database_name = current_database() and not internal group by all
                """
            ).fetchall()
        except (duckdb.Error, ValueError) as error:
            connection.close()
            raise SnapshotError(unreadable(settings, error)) from error
        return cls(settings.dataset, fingerprint, published_at, dict(tables), connection)

    def has(self, table: str, *columns: str) -> bool:
        """Whether the snapshot has this table, with these columns: older snapshots lack newer ones."""
        return table in self.tables and set(columns) <= set(self.tables[table])

    def ask(self, sql: str, **parameters: object) -> pa.Table:
        """Answer of one query; ``parameters`` may be more than the query names."""
        key = (sql, repr(parameters))
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
                return self._answers[key]
        answer = self._answer(sql, parameters)
        if answer.num_rows <= MOST_ROWS:
            with self._lock:
                self._answers[key] = answer
                while len(self._answers) > MOST_ANSWERS:
                    self._answers.popitem(last=False)
        return answer

    def rows(self, sql: str, **parameters: object) -> list[Row]:
        return self.ask(sql, **parameters).to_pylist()

    def first(self, sql: str, **parameters: object) -> Row | None:
        return next(iter(self.rows(sql, **parameters)), None)

    def prepare(self, table: str, sql: str, **parameters: object) -> str:
        """Keep the answer of a query in memory as a table, for questions that would join the same rows each time.

        Returns the table's name in SQL. The few that were asked for last are kept; ``ask`` makes another again.
        """
        name = f"memory.main.{quoted(table)}"
        with self._preparing:
            self._recipes[name] = sql, parameters
            self._keep(name)
        return name

    def _keep(self, name: str) -> None:
        """Have a table in memory, in the place of those not asked for the longest. Whoever calls holds the lock."""
        if name not in self._kept:
            sql, parameters = self._recipes[name]
            sources = self._tables_of(sql)
            for source in sources:
                self._keep(source)
            self._drop_all_but(MOST_TABLES - 1)
            create = f"create table {name} as {sql}"
            try:
                self._run(create, parameters)
            except duckdb.OutOfMemoryException:
                self._drop_all_but(len(sources))
                self._run(create, parameters)
            self._kept[name] = None
        self._kept.move_to_end(name)

    def _drop_all_but(self, n: int) -> None:
        while len(self._kept) > n:
            self._run(f"drop table {next(iter(self._kept))}", {})
            self._kept.popitem(last=False)

    def _tables_of(self, sql: str) -> list[str]:
        """Prepared tables that a query names."""
        return [name for name in self._recipes if name in sql]

    def _answer(self, sql: str, parameters: Row) -> pa.Table:
        try:
            return self._run(sql, parameters)
        except (duckdb.CatalogException, duckdb.OutOfMemoryException) as error:
            with self._preparing:
                # another visitor's choice may have taken the place of a table; while the lock is held, none can
                tables = self._tables_of(sql)
                for name in tables:
                    self._keep(name)
                if isinstance(error, duckdb.OutOfMemoryException):
                    self._drop_all_but(len(tables))
                return self._run(sql, parameters)

    def _run(self, sql: str, parameters: Row) -> pa.Table:
        named = set(re.findall(r"\$(\w+)", sql))
        used = {name: value for name, value in parameters.items() if name in named}
        with self._connection.cursor() as cursor:
            cursor.execute(f"use {quoted(self.dataset)}")
            return cursor.execute(sql, used).to_arrow_table(RESULT_ROWS)

    @property
    def age_days(self) -> float:
        return (datetime.now(UTC).replace(tzinfo=None) - self.published_at).total_seconds() / 86_400


class Snapshots:
    """The newest snapshot of each dataset. One for the whole process."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[tuple[int, ...], Snapshot]] = {}
        self._lock = threading.Lock()

    def newest(self, settings: Settings) -> Snapshot:
        """The file that stands there now. Raises SnapshotError when there is none or it cannot be read.

        The one before is let go of: it closes as soon as the questions that are still running on it are answered.
        """
        with self._lock:
            identity = _identity(settings)
            known = self._open.get(settings.published)
            if known is None or known[0] != identity:
                self._open.pop(settings.published, None)
                self._open[settings.published] = known = (identity, Snapshot.open(settings))
            return known[1]


#: Of this process: visitors share what is open and what was answered.
SNAPSHOTS = Snapshots()


def published_datasets(settings: Settings) -> list[str]:
    """Names of the datasets that have a snapshot in this home."""
    return sorted(path.stem for path in settings.published.parent.glob("*.duckdb"))


def _identity(settings: Settings) -> tuple[int, ...]:
    try:
        stat = settings.published.stat()
    except FileNotFoundError:
        raise SnapshotError(
            f"nothing has been published for {settings.dataset} below {settings.home}. "
            f"Type: housing run --dataset {settings.dataset}"
        ) from None
    return (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
