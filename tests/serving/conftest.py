"""One small hdb home, built once with the product's own functions and published: what the API serves in these tests.

Real files where they are here, made ones elsewhere. A version of few trees is champion; v2 is trained on demand.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pyarrow as pa
import pytest

from ml.params import load as load_params
from ml.registry import champion, train_and_register
from ml.score import score_months
from ml.warehouse import connect
from tests import factories
from tests.built import built_once
from tests.conftest import REAL_DATA, Home
from tests.servers import answer_of, free_port, started

#: Scored months; the second one is the newest with encodings of prices before it.
MONTHS = [date(2022, 1, 1), date(2022, 2, 1)]
FIRST = {2020: 7, 2021: 1}
FILES = [f"{year}-{month:02d}.csv" for year, first in FIRST.items() for month in range(first, 13)]
FILES += ["2022-01.csv", "2022-02.csv"]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A published home, the same for all workers; do not change it, take ``copied`` for that."""
    root = built_once(tmp_path_factory, "served", lambda root: publish_small(Home(root / "home", "hdb")))
    return Home(root / "home", "hdb")


def publish_small(home: Home) -> str:
    """Load, build, train, score and publish few months."""
    from dagster_project.published.snapshot import publish

    home.settings.landing.mkdir(parents=True)
    home.settings.warehouse.parent.mkdir(parents=True, exist_ok=True)
    real = [REAL_DATA / "hdb" / name for name in FILES]
    if all(path.exists() for path in real):
        for path in real:
            (home.settings.landing / path.name).symlink_to(path)
    else:
        home.land("made.csv", factories.hdb_rows("2020-07", months=20, per_month=600))
    home.land("gaps.csv", gaps(home))
    home.ingest()
    home.build("--exclude", "test_type:data")
    train(home)
    with connect(home.settings) as connection:
        version = champion(connection)
        assert version, connection.execute("select reasons from training.model_versions").fetchall()
        score_months(connection, home.settings, home.contract, version, MONTHS, run_id="test")
    home.dbt("build", "--exclude", "resource_type:unit_test", "test_type:data", "--select", *RANGES)
    publish(home.settings)
    return version.model_version


def gaps(home: Home) -> pa.Table:
    """Homes of the last month under other keys, without a storey or a place on the map: no learned home lacks these."""
    return duckdb.sql(
        f"""
        select * exclude (n) replace (
            'G' || _id as _id, null::varchar as storey_range, if(n % 2 = 0, latitude, null) as latitude
        )
        from (
            select *, row_number() over (order by _id) as n
            from read_csv('{home.settings.landing}/*.csv', all_varchar = true, union_by_name = true)
            where month = '2022-02'
        )
        where n <= 40
        """
    ).to_arrow_table()


RANGES = ("confidence_grades", "+prediction_intervals", "--exclude", "+training_dataset")


def train(home: Home, rounds: int = 120, **more: Any) -> None:
    """Register a small version; the first one becomes champion."""
    params = load_params("hdb").model_copy(update={"rounds": rounds, "eta": 0.15, "early_stopping_rounds": 20})
    with connect(home.settings) as connection:
        train_and_register(connection, home.settings, home.contract, params=params, **more)


@pytest.fixture
def copied(served: Home, tmp_path: Path) -> Home:
    """A home of the test's own, without the landed files; its versions stand where they were trained."""
    path = tmp_path / "home"
    for part in ("warehouse", "published"):
        shutil.copytree(served.settings.home / part, path / part)
    return Home(path, "hdb")


@dataclass
class Api:
    """A running API process."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def ready(self) -> dict[str, Any]:
        """What it says when it is."""
        return json.loads(answer_of(f"{self.url}/ready", self.process, self.log))


@contextlib.contextmanager
def running(home: Home, **settings: str) -> Iterator[Api]:
    """``housing serve`` in a process of its own on a free port until the block ends."""
    port = free_port()
    # several serve one home at a time, and two writers of one file overwrite each other
    log = home.settings.home / f"api-{port}.log"
    environment = {
        **home.settings.environment,
        "HOUSING_API_PORT": str(port),
        **{f"HOUSING_API_{name.upper()}": value for name, value in settings.items()},
    }
    with started([sys.executable, "-m", "dagster_project.cli", "serve"], log, environment) as process:
        api = Api(process, f"http://127.0.0.1:{port}", log)
        with api.client:
            yield api


@pytest.fixture(scope="session")
def api(served: Home) -> Iterator[Api]:
    """One process that most tests ask."""
    with running(served, rotate_s="1000") as started:
        started.ready()
        yield started


@pytest.fixture(scope="session")
def example(api: Api) -> dict[str, Any]:
    """The worked example of the OpenAPI document."""
    document = api.client.get("/openapi.json").json()
    body = document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]
    return body["examples"]["one row"]["value"]


@pytest.fixture(scope="session")
def raw(served: Home) -> list[dict[str, Any]]:
    """Up to 1,000 scored landed rows as requests, with the price and ranges that the batch gave: ``want``."""
    columns = [c for c in served.contract.columns if c.source and c.role not in {"price", "leak"}]
    names = ", ".join(f'nullif(trim(o."{c.source}"), \'\') as "{c.name}"' for c in columns)
    rows = served.query(
        f"""
        select {names}, struct_pack(
            observation_id := p.observation_id, predicted_price := p.predicted_price, lower_50 := i.lower_50,
            upper_50 := i.upper_50, lower_80 := i.lower_80, upper_80 := i.upper_80, lower_95 := i.lower_95,
            upper_95 := i.upper_95, forecast_std_pct := i.forecast_std_pct, grade := i.grade, month := p.month,
            recent_error := p.recent_error
        ) as want
        from predictions.predictions as p
        inner join predictions.prediction_intervals as i using (observation_id, model_version)
        inner join intermediate.int_observations as c on c.observation_id = p.observation_id
        inner join raw.observations as o on o._batch = c._batch and o._row = c._row
        where p.kind = 'model' and p.split <> 'eval' order by reverse(p.observation_id) limit 1000
        """
    ).to_pylist()
    numbers = [c.name for c in columns if c.type == "number"]
    return [{k: float(v) if k in numbers and v is not None else v for k, v in row.items()} for row in rows]
