"""What assets are given: settings, contract, the locked warehouse. No logic about data belongs here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import duckdb

from ml.contract import Contract, load
from ml.settings import Settings
from ml.warehouse import connect, create_tables, warehouse_lock

#: Every write to the DuckDB file goes through this pool (limit 1 in dagster.yaml) and the file lock behind it.
POOL = "warehouse"


class Housing(dg.ConfigurableResource):
    """Settings of one dataset. Empty fields are taken from ``HOUSING_*`` variables."""

    home: str = ""
    dataset: str = ""

    @property
    def settings(self) -> Settings:
        given = {k: v for k, v in (("home", self.home), ("dataset", self.dataset)) if v}
        return Settings(**given)  # pyright: ignore[reportArgumentType] - pydantic converts

    @property
    def contract(self) -> Contract:
        return load(self.settings.dataset)

    @contextmanager
    def lock(self, context: dg.AssetExecutionContext | dg.OpExecutionContext) -> Iterator[None]:
        """The one-writer lock for a step; says in the run's log who holds it when it has to wait."""
        with warehouse_lock(self.settings, f"run {context.run_id[:8]}", context.log.info):
            yield

    @contextmanager
    def write(self, context: dg.AssetExecutionContext | dg.OpExecutionContext) -> Iterator[duckdb.DuckDBPyConnection]:
        """A locked connection to the working warehouse with all Python-owned tables in place."""
        with self.lock(context), connect(self.settings) as connection:
            create_tables(connection, self.contract)
            yield connection


def prepare_environment(settings: Settings) -> None:
    """Folders, the instance's ``dagster.yaml`` and the variables that child processes read."""
    os.environ.update(settings.environment)
    for folder in (settings.landing, settings.quarantine, settings.warehouse.parent, settings.dagster_home):
        folder.mkdir(parents=True, exist_ok=True)
    instance_config = settings.dagster_home / "dagster.yaml"
    if not instance_config.exists():
        shutil.copyfile(Path(__file__).with_name("dagster.yaml"), instance_config)
