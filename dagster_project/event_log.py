"""Where Dagster keeps its events: its own SQLite files, without opening them anew for every event.

A month is 850 events, each of which Dagster stores by three connections with statements compiled anew: 9 of 40 seconds.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy
import sqlalchemy.event
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._serdes import ConfigurableClassData

#: Files that stay open: the index over all runs, the run of this process, and what the UI looks at.
OPEN_FILES = 4


class EventLog(SqliteEventLogStorage):
    """Dagster's default storage, at its default place, with pooled connections."""

    #: A command holds the warehouse for all of its steps. Were each to ask for the pool, it would wait for a run of the
    #: UI that has the only place in it, and that waits for the warehouse.
    asks_for_pools = True

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines: dict[str, sqlalchemy.Engine] = {}
        super().__init__(base_dir, inst_data)

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> EventLog:
        return cls(str(Path(os.environ["DAGSTER_HOME"]) / "history" / "runs"), inst_data)

    @cached_property
    def supports_asset_checks(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] - asked once
        """Whether the tables of asset checks are there; Dagster looks for each verdict anew."""
        return super().supports_asset_checks

    @property
    def supports_global_concurrency_limits(self) -> bool:
        """Whether steps of this process wait for a place in their pool."""
        return self.asks_for_pools and super().supports_global_concurrency_limits

    def store_event(self, event: EventLogEntry) -> None:
        super().store_event(event)
        # the page of a run waits for its file to change, but what is written stands in another beside it (-wal) until
        # the file is closed
        os.utime(self.path_for_shard(event.run_id))

    @contextmanager
    def _connect(self, shard: str) -> Iterator[sqlalchemy.Connection]:
        with self._db_lock, self._engine(shard).begin() as connection:
            yield connection

    def _engine(self, shard: str) -> sqlalchemy.Engine:
        engine = self._engines.pop(shard, None)
        if engine is None:
            engine = sqlalchemy.create_engine(
                self.conn_string_for_shard(shard), connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS}
            )
            sqlalchemy.event.listen(engine, "connect", _trust_the_log)
            if shard not in self._initialized_dbs:
                self._initdb(engine)
                self._initialized_dbs.add(shard)
            while len(self._engines) >= OPEN_FILES:
                self._engines.pop(next(iter(self._engines))).dispose()
        self._engines[shard] = engine  # used last
        return engine

    def dispose(self) -> None:
        for engine in self._engines.values():
            engine.dispose()
        self._engines.clear()
        super().dispose()


def _trust_the_log(connection: sqlite3.Connection, _: object) -> None:
    """A killed process loses nothing; a power cut may lose the last events, and never breaks the file."""
    connection.execute("pragma synchronous = normal")
