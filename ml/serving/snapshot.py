"""One published snapshot, held while it answers, and what the API reads from it.

The snapshot is replaced by rename, never changed, so a hard link keeps the very rows that were looked at. Its own name
also avoids a trap: DuckDB gives a second connection to one path in one process the file that the first one opened.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ml.contract import Contract, add_months
from ml.registry import ModelVersion
from ml.serving.folders import snapshots
from ml.settings import Settings
from ml.warehouse import RESULT_ROWS

#: Memory that questions to the snapshot may take, most of it pages of the file that may be asked for again.
MEMORY_LIMIT = "100MB"


class NotPublishedError(RuntimeError):
    """There is no snapshot, or it lacks what the API needs; the message says what to run."""


class Snapshot:
    """A held snapshot. Safe to use from several threads; ``close`` lets go of the file."""

    def __init__(self, settings: Settings) -> None:
        """Hold what is published now. Raises NotPublishedError without a snapshot."""
        published = settings.published
        folder = snapshots(settings)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            status = published.stat()
            self.path = folder / f"{os.getpid()}-{status.st_ino}-{status.st_mtime_ns}.duckdb"
            self.path.unlink(missing_ok=True)
            try:
                self.path.hardlink_to(published)
            except OSError:  # another file system, or links are not allowed here
                _copied(published, self.path)
        except FileNotFoundError:
            raise NotPublishedError(
                f"nothing is published for {settings.dataset} yet; run `housing run -d {settings.dataset}` first"
            ) from None
        self.identity = identity(published)
        self._lock = threading.Lock()
        try:
            self._connection = duckdb.connect(":memory:", config={"threads": 1, "memory_limit": MEMORY_LIMIT})
            self._connection.execute("set enable_progress_bar = false")
            path = str(self.path).replace("'", "''")
            self._connection.execute(f"attach '{path}' as snapshot (read_only)")
            # under the names of the warehouse, for code that knows those
            self._connection.execute("create schema features")
            self._connection.execute("create view features.features as from snapshot.training.training_dataset")
            self._connection.execute("create view features.encodings as from snapshot.features.encodings")
            row = self.rows("select fingerprint, published_at from published.about")
        except duckdb.Error as error:
            self.path.unlink(missing_ok=True)
            said = str(error).splitlines()[0]
            raise NotPublishedError(f"what is published for {settings.dataset} is no snapshot: {said}") from None
        self.fingerprint: str = row[0]["fingerprint"]
        self.published_at: datetime = row[0]["published_at"].replace(tzinfo=UTC)

    def close(self) -> None:
        with self._lock:
            self._connection.close()
        self.path.unlink(missing_ok=True)

    @property
    def age_s(self) -> float:
        return (datetime.now(UTC) - self.published_at).total_seconds()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of the caller's own to the snapshot's tables; the caller closes it."""
        connection = self.warehouse_cursor()
        connection.execute("use snapshot")
        return connection

    def warehouse_cursor(self) -> duckdb.DuckDBPyConnection:
        """The same, but features stand in ``features.features``, as in the warehouse."""
        with self._lock:
            return self._connection.cursor()

    def table(self, sql: str, parameters: dict[str, Any] | None = None) -> pa.Table:
        with contextlib.closing(self.cursor()) as connection:
            return connection.execute(sql, parameters or {}).to_arrow_table(RESULT_ROWS)

    def rows(self, sql: str, parameters: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        return self.table(sql, parameters).to_pylist()

    def versions(self) -> dict[str, ModelVersion]:
        """The champion and the challenger, by status; a snapshot of an older layout lacks some of their columns."""
        found = self.rows("from training.model_versions where status in ('champion', 'challenger')")
        names = [f.name for f in fields(ModelVersion)]
        return {row["status"]: ModelVersion(**{name: row.get(name) for name in names}) for row in found}  # pyright: ignore

    def newest_month(self) -> date | None:
        """Newest month with encodings; None for a dataset without them."""
        return self.rows("select max(month) as month from features.encodings")[0]["month"]

    def encodings(self, contract: Contract, month: date | None) -> pa.Table:
        """What a row of the month needs of ``features.encodings``, in an order that lets DuckDB skip what it can."""
        if month is None:
            return self.table("from features.encodings order by encoding, month, key_value")
        earlier: Sequence[tuple[str, str]] = [
            (e.name, f"date '{add_months(month, -back)}'") for e in contract.encodings for back in e.changes
        ]
        conditions = [f"encoding = '{name}' and month = {day}" for name, day in earlier]
        # the feature view takes the newest month there is for the latest
        wanted = " or ".join(["month = $month", *conditions])
        return self.table(
            f"select * from features.encodings where {wanted} order by encoding, month, key_value", {"month": month}
        )

    def encodings_of(self, wanted: pa.Table) -> pa.Table:
        """Rows of ``features.encodings`` by ``encoding``, ``month`` and ``key_value``, in one pass of 20 to 300 ms."""
        with contextlib.closing(self.cursor()) as connection:
            connection.register("wanted", wanted)
            return connection.execute(
                "from features.encodings semi join wanted using (encoding, month, key_value)"
            ).to_arrow_table(RESULT_ROWS)

    def unseen(self) -> pa.Table:
        """What keys without an encoding of their own are worth, by month: few rows."""
        return self.table("from features.encodings where key_value = '__unseen__'")


def _copied(source: Path, target: Path) -> None:
    """Copy a file whole or not at all: a disk that is full keeps no part of it."""
    try:
        shutil.copyfile(source, target)
    except OSError:
        target.unlink(missing_ok=True)
        raise


def identity(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever another file is renamed into the path's place; None without one."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
