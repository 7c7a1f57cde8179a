"""Landing folders: which files they take, which gate judges them, and where their rows go.

The steps of a file are the same for all and stand in ``landing.py``; the folder of later prices is in ``actuals.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import duckdb

from dagster_project.raw.reading import Rows
from expectations import raw_file
from expectations.runner import Rule
from ml.contract import Contract
from ml.settings import Settings
from ml.warehouse import quoted


class Inbox(ABC):
    """One landing folder of a dataset."""

    #: Stands before the names of its files in ``raw.files``: folders share neither names nor contents.
    prefix = ""

    def __init__(self, settings: Settings, contract: Contract, connection: duckdb.DuckDBPyConnection) -> None:
        self.settings, self.contract, self.connection = settings, contract, connection

    @property
    @abstractmethod
    def folder(self) -> Path: ...

    @property
    @abstractmethod
    def columns(self) -> Contract:
        """A contract whose ``sources`` are the columns that its files may have."""

    @abstractmethod
    def rules(self) -> list[Rule]:
        """The gate."""

    @abstractmethod
    def absent(self, headers: Sequence[str]) -> list[str]:
        """Required columns that a file with these headers lacks."""

    @abstractmethod
    def insert(self, rows: Rows, file: str, batch: int, now: datetime) -> None:
        """Write the rows of one file; the caller's transaction."""

    def prepare(self, headers: Sequence[str]) -> tuple[str, ...]:
        """Get ready for rows with these headers, before the transaction. Returns those that nobody asked for."""
        return tuple(h for h in headers if h not in self.columns.sources)

    def entries(self) -> list[Path]:
        """What lies in the folder, in the order in which it is loaded."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # by stem first: a correction gets a suffix (landing.py) and is loaded after what it corrects
        return sorted((p for p in self.folder.iterdir() if not p.name.startswith(".")), key=lambda p: (p.stem, p.name))


class Observations(Inbox):
    """The dataset's landing folder: every row as text into ``raw.observations``."""

    @property
    def folder(self) -> Path:
        return self.settings.landing

    @property
    def columns(self) -> Contract:
        return self.contract

    def rules(self) -> list[Rule]:
        return raw_file.rules(self.contract)

    def absent(self, headers: Sequence[str]) -> list[str]:
        return [h for h in self.contract.required_headers if h not in headers]

    def prepare(self, headers: Sequence[str]) -> tuple[str, ...]:
        extra = super().prepare(headers)
        for header in extra:
            self.connection.execute(f"alter table raw.observations add column if not exists {quoted(header)} varchar")
        return extra

    def insert(self, rows: Rows, file: str, batch: int, now: datetime) -> None:
        columns = ", ".join(map(quoted, rows.headers))
        self.connection.execute(
            f"insert into raw.observations ({columns}, _file, _row, _loaded_at, _batch) "
            f"select {columns}, ?, _row, ?, ? from {rows.relation}",
            [file, now, batch],
        )

    def entries(self) -> list[Path]:
        return [p for p in super().entries() if p != self.settings.landed_actuals]
