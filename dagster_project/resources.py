"""What assets are given: settings, contract, the locked warehouse, dbt. No logic about data belongs here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from pathlib import Path

import dagster as dg
import duckdb
from dagster_dbt import DbtCliResource
from packaging.version import Version

from ml.contract import Contract, load
from ml.settings import PROJECT_ROOT, Settings
from ml.warehouse import connect, create_tables, warehouse_lock

WAREHOUSE_PROJECT = PROJECT_ROOT / "warehouse"

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


class Dbt(DbtCliResource):
    """dbt as a child process and nothing more.

    dagster-dbt also starts ``dbt --version`` for each run, and loads dbt into this process to fetch row counts and
    columns: six seconds a step, for something that DuckDB does not allow (a second connection with other settings).
    """

    @cached_property
    def _cli_version(self) -> Version:
        return Version(metadata.version("dbt-core"))

    def _initialize_dbt_core_adapter(self, args: Sequence[str]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None


def dbt_resource() -> Dbt:
    """dbt of this very interpreter, whether or not its folder is on PATH."""
    return Dbt(
        project_dir=os.fspath(WAREHOUSE_PROJECT),
        profiles_dir=os.fspath(WAREHOUSE_PROJECT),
        dbt_executable=os.fspath(Path(sys.executable).parent / "dbt"),
        global_config_flags=["--no-use-colors"],
    )


def prepare_environment(settings: Settings) -> None:
    """Folders, the instance's ``dagster.yaml`` and the variables that child processes read."""
    os.environ.update(settings.environment)
    for folder in (settings.landing, settings.quarantine, settings.warehouse.parent, settings.dagster_home):
        folder.mkdir(parents=True, exist_ok=True)
    instance_config = settings.dagster_home / "dagster.yaml"
    if not instance_config.exists():
        shutil.copyfile(Path(__file__).with_name("dagster.yaml"), instance_config)
