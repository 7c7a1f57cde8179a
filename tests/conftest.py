"""One throw-away HOUSING_HOME per test, driven through the product's own functions. Data stand in factories.py."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from dagster_project.transform.dbt import run_dbt
from ml.contract import Contract, load
from ml.settings import PROJECT_ROOT, QUIET, Settings
from ml.warehouse import connect, create_tables, in_order
from tests import factories
from tests.prepared import Command

os.environ.update(QUIET)
# as the command line does
gc.set_threshold(10_000)

REAL_DATA = PROJECT_ROOT.parent / "shared" / "data"

#: Canonical columns of the upstream models that the models under test read; ``upstream`` adds the dataset's features.
_UPSTREAM = """
create schema features;
create schema intermediate;
create table raw.observations (_file varchar, _row bigint, _loaded_at timestamp, _batch bigint);
create table features.features (
    _batch bigint, observation_id varchar, observed_on date, month date, area varchar, locality varchar,
    price double, is_price_valid boolean, split varchar, target_offset double, persistence_price double,
    last_year_price double, error_keys varchar[], history_n bigint, built_through_batch bigint, {features}
);
create view training.training_dataset as select * from features.features;
create table intermediate.int_observations_rejected (
    _file varchar, _row bigint, _batch bigint, observation_id varchar, reasons varchar[]
);
"""


def upstream(dataset: str) -> str:
    """SQL that makes empty upstream tables of a dataset, to stand behind ``OWNED_TABLES``."""
    return _UPSTREAM.format(features=", ".join(f"{name} double" for name in load(dataset).features))


class Home:
    """A clean home of one dataset: land, ingest, build, ask."""

    def __init__(self, path: Path, dataset: str) -> None:
        self.settings = Settings(home=path, dataset=dataset)
        self.contract: Contract = load(dataset)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.settings.environment}

    def land(self, name: str, rows: pa.Table) -> Path:
        return factories.write_csv(rows, self.settings.landing / name)

    def ingest(self) -> None:
        from dagster_project.raw.landing import ingest

        with connect(self.settings) as connection:
            create_tables(connection, self.contract)
            ingest(self.settings, self.contract, connection)

    def dbt(self, *arguments: str) -> str:
        """Run dbt as the product does. Fails the test with dbt's own output."""
        said: list[str] = []

        def hear(event: Any) -> None:
            if event.info.level != "debug":
                said.append(event.info.msg)

        run_dbt(self.settings, *arguments, hear=hear)
        return "\n".join(said)

    def build(self, *arguments: str) -> None:
        """From raw to training_dataset, with data tests."""
        layers = ("us_metros", "metro_renames", "staging", "intermediate", "features", "training")
        self.dbt("build", "--exclude-resource-type", "unit_test", "--select", *layers, *arguments)

    def query(self, sql: str) -> pa.Table:
        with connect(self.settings, read_only=True) as connection, in_order(connection):
            return connection.execute(sql).to_arrow_table()

    def one(self, sql: str) -> object:
        return self.query(sql).column(0)[0].as_py()

    def started(self, *arguments: str) -> Command:
        """The command line in a process of its own that was ready to start; see ``tests/prepared.py``."""
        return Command(arguments, self.environment, self.settings.home.parent)

    def killed(self, *arguments: str, during: str) -> bool:
        """kill -9 the command's whole process group right after it began a step. Was it in time?"""
        command = self.started(*arguments)
        command.wait_to_say(during)
        time.sleep(0.05)
        return command.kill()

    def killed_in_dbt(self, *arguments: str, during: str) -> bool:
        """The same while dbt makes a model, whose statement it writes down before."""
        file = self.settings.dbt_target / "run" / "housing" / "models" / f"{during}.sql"
        file.unlink(missing_ok=True)
        command = self.started(*arguments)
        command.wait_until(file.exists)
        return command.kill()

    def housing(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The command line in a process of its own that was ready to start."""
        return _checked(self.started(*arguments).wait(), check)

    def typed(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The command line as a user starts it, from nothing."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / "housing"), *arguments],
            env=self.environment,
            cwd=self.settings.home.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        return _checked(done, check)


def _checked(done: subprocess.CompletedProcess[str], check: bool) -> subprocess.CompletedProcess[str]:
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long modules first: none is left at the end, and who needs the homes that these build does not wait."""
    items.sort(key=lambda item: item.path.parent.name != "end_to_end")


@pytest.fixture
def home(tmp_path: Path):
    """Factory of homes: ``home("hdb")``, ``home("hdb", "other")``."""

    def make(dataset: str, name: str = "home") -> Home:
        made = Home(tmp_path / name, dataset)
        made.settings.landing.mkdir(parents=True)
        made.settings.warehouse.parent.mkdir(parents=True, exist_ok=True)
        return made

    return make


@pytest.fixture
def memory() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(":memory:")


def real(*parts: str) -> Path:
    """Path of a real file; the test skips where it is absent."""
    path = REAL_DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data are not here: {path.relative_to(PROJECT_ROOT.parent)}")
    return path
