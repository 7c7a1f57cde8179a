"""The README, typed by a new user: `housing …` in a process of its own, on a synthetic file.

First commands and short ones start from nothing (``typed``), long ones from a process that was ready (``housing``).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from dagster_project.pipeline import project_state, run_state
from dagster_project.raw.landing import landing_state
from ml.registry import champion, run_file
from ml.settings import PROJECT_ROOT
from ml.warehouse import connect
from tests.built import first_run
from tests.conftest import Home

#: Public tables that a run with nothing new must leave as they are.
TABLES = ("predictions.predictions", "features.encodings", "training.training_dataset", "training.model_versions")


def fingerprints(home: Home) -> dict[str, tuple[int, int]]:
    """Count and order-independent hash of every public table."""
    with duckdb.connect(str(home.settings.published), read_only=True) as connection:
        out = {}
        for table in TABLES:
            row = connection.execute(f"select count(*), sum(hash(t)) from {table} as t").fetchone()
            assert row is not None
            out[table] = row
    return out


def is_news(home: Home) -> bool:
    """Would the next run have something to do?"""
    state = run_state(project_state(home.settings), landing_state(home.settings))
    return home.settings.warehouse.with_suffix(".state").read_text(encoding="utf-8") != state


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, str]:
    """A finished first run on a small synthetic file, and what it said."""
    return first_run(tmp_path_factory)


@pytest.fixture(scope="module")
def synthetic(run: tuple[Home, str]) -> Home:
    """The tests of this module share it and only add to it."""
    return run[0]


def test_the_first_run_ends_with_a_readable_summary(run: tuple[Home, str]) -> None:
    text = run[1]
    for wanted in ("landed       20,000 rows", "superseded", "v1 passed its gate", "champion     v1", "persistence",
                   "linear_v1", "holdout", "make ui"):  # fmt: skip
        assert wanted in text, text


def test_tables_that_python_writes_are_tested_before_they_are_published(synthetic: Home) -> None:
    said = (synthetic.settings.dagster_home / "last_run.log").read_text(encoding="utf-8")
    for name in ("explanations_add_up_to_the_prediction", "comparables_are_earlier_sales",
                 "source_unique_key_predictions_predictions"):  # fmt: skip
        assert re.search(rf"PASS .*{name}", said), name


def test_every_check_that_is_named_is_made(synthetic: Home) -> None:
    found = synthetic.query(
        "select check_name from monitoring.monitoring_checks except select check_name from monitoring.checks"
    )
    assert found["check_name"].to_pylist() == []
    shares = synthetic.query(
        "select distinct status, upper_limit from monitoring.checks where check_name = 'feature_drift'"
    )
    limits = {"pass": 10, "warn": 10, "fail": 50}
    assert shares.num_rows and all(r["upper_limit"] == limits[r["status"]] for r in shares.to_pylist())


def test_a_second_run_with_nothing_new_changes_no_row_and_does_next_to_nothing(synthetic: Home) -> None:
    before, stamp = fingerprints(synthetic), synthetic.settings.published.stat().st_mtime_ns
    again = synthetic.typed("run")
    assert "nothing new" in again.stderr
    assert fingerprints(synthetic) == before
    assert synthetic.settings.published.stat().st_mtime_ns == stamp


def test_plain_dbt_makes_the_same_tables(synthetic: Home) -> None:
    tables = ("features.features", "features.encodings", "training.training_dataset", "monitoring.accuracy_by_month")

    def content() -> list[pa.Table]:
        return [synthetic.query(f"select * from {t} order by all") for t in tables]

    before = content()
    done = subprocess.run(
        [str(Path(sys.executable).parent / "dbt"), "build", "--project-dir", str(PROJECT_ROOT / "warehouse")],
        # in the folder where the first run's dbt has left what it read of the project
        env={**os.environ, **synthetic.settings.environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "PASS=" in done.stdout and "ERROR=0" in done.stdout
    assert content() == before


def test_status_is_json_for_programs(synthetic: Home) -> None:
    figures = json.loads(synthetic.typed("status", "--format", "json").stdout)
    assert figures["champion"]["model_version"] == "v1"
    rows = figures["rows"]
    accepted = rows["train"] + rows["eval"] + rows["holdout"] + rows["to_score"]
    assert rows["landed"] == 20_000 == accepted + rows["rejected"]
    assert rows["difference"] == 0


def test_the_reports_pictures_are_artifacts_of_the_champions_run(synthetic: Home) -> None:
    with connect(synthetic.settings, read_only=True) as connection:
        version = champion(connection)
    assert version
    kept = run_file(synthetic.settings, version, "reports/2023-12")
    names = {path.name for path in kept.iterdir()}
    assert names > {"2023-12.html", "accuracy.svg", "decile.svg", "coverage.svg", "area.svg", "importance.svg"}
    for picture in kept.glob("*.svg"):
        assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_sql_answers_and_refuses(synthetic: Home) -> None:
    answer = synthetic.typed("sql", "select count(*) as n from predictions.predictions", "--format", "json")
    assert json.loads(answer.stdout)[0]["n"] > 0
    refused = synthetic.typed("sql", "copy predictions.predictions to 'x.csv'", check=False)
    assert refused.returncode != 0
    assert len(refused.stderr.strip().splitlines()) == 1


def test_scoring_a_month_again_gives_the_same_predictions(synthetic: Home) -> None:
    ask = "select observation_id, model_version, predicted_price from predictions.predictions order by all"
    before = synthetic.query(ask)
    synthetic.housing("score", "--month", "2023-05")
    assert synthetic.query(ask).equals(before)
    refused = synthetic.housing("score", "--month", "2019-05", check=False)
    assert refused.returncode != 0
    assert "v1 was trained through 2021-12" in refused.stderr
    for month, sentence in (("2025-05", "has no rows of 2025-05"), ("2010-01", "months of housets are from 2012-03")):
        refused = synthetic.housing("score", "--month", month, check=False)
        assert refused.returncode != 0 and sentence in refused.stderr


def test_one_more_month_is_scored_while_a_reader_keeps_its_snapshot(synthetic: Home, tmp_path: Path) -> None:
    reader = duckdb.connect(str(synthetic.settings.published), read_only=True)
    count = "select count(*) from predictions.predictions where model_version = 'v1' and month = date '2024-01-01'"
    table = synthetic.query("select * from raw.observations where date like '2023-12%'")
    names = [n for n in table.column_names if not n.startswith("_")]
    month = table.select(names)
    month = month.set_column(0, "date", [["2024-01-31"] * month.num_rows])
    from tests import factories

    path = factories.write_csv(month, tmp_path / "2024-01.csv")
    running = synthetic.started("run", "--from", str(path))
    running.wait_to_say("score")
    # what lands while it runs is for the next run
    late = factories.write_csv(month.slice(0, 1), synthetic.settings.landing / "late.csv")
    assert running.is_running
    assert running.wait().returncode == 0
    assert is_news(synthetic)
    late.unlink()
    assert not is_news(synthetic)
    assert reader.execute(count).fetchone() == (0,)
    reader.close()
    with duckdb.connect(str(synthetic.settings.published), read_only=True) as fresh:
        row = fresh.execute(count).fetchone()
    assert row is not None and row[0] > 100


def test_the_loop_retrains_compares_promotes_and_goes_back(synthetic: Home, tmp_path: Path) -> None:
    """Two months whose prices follow other rules: a decision, one training, a comparison by SQL, and the way back."""
    from tests import factories

    for month in ("2024-02", "2024-03"):
        table = synthetic.query("select * from raw.observations where date like '2023-12%'")
        names = [n for n in table.column_names if not n.startswith("_")]
        rows = table.select(names).set_column(0, "date", [[f"{month}-28"] * table.num_rows])
        # dear zip codes fall, cheap ones rise: no shift of the level
        price = np.array(rows["price"].to_pylist(), dtype=float)
        changed = price * np.exp(-0.5 * (np.log(price) - np.log(price).mean()))
        rows = rows.set_column(names.index("price"), "price", [[str(round(p)) for p in changed]])
        factories.write_csv(rows, tmp_path / f"{month}.csv")
    # the month after them is not sold yet, so that a version trained through both has something to score
    rows = rows.set_column(0, "date", [["2024-04-30"] * rows.num_rows])
    rows = rows.set_column(names.index("price"), "price", [[""] * rows.num_rows])
    factories.write_csv(rows, tmp_path / "2024-04.csv")
    # a slip of the pen is no month that could be scored, and keeps no other from it
    factories.write_csv(rows.slice(0, 1).set_column(0, "date", [["2203-01-31"]]), tmp_path / "2203-01.csv")
    assert "not scored: rows of 2203-01" in synthetic.housing("run", "--from", str(tmp_path)).stderr
    decision = "select decision, reasons, is_done from monitoring.retrain_decisions where decision_id = 'v1 2024-03'"
    assert synthetic.query(decision).to_pylist()[0]["decision"] == "retrain"
    mine = "select observation_id, predicted_price from predictions.predictions where model_version = 'v1'"
    before = synthetic.query(f"{mine} and split <> 'eval' order by all")

    # killed half way, the signal is not lost
    assert synthetic.killed("retrain", during="select training rows"), "it ended before it was struck"
    assert "trained because of" in synthetic.housing("retrain").stdout
    assert synthetic.query(decision).to_pylist()[0]["is_done"]
    attempts = synthetic.query(
        "select finished_at is not null as ended from training.retrain_attempts order by attempt"
    )
    assert attempts["ended"].to_pylist() == [False, True]
    trained = synthetic.query("select model_version, status, trained_through from training.model_versions").to_pylist()
    assert [row["model_version"] for row in trained] == ["v1", "v2"]
    assert trained[1]["trained_through"] == date(2024, 3, 1)
    assert trained[1]["status"] == "challenger"
    assert synthetic.one("select verdict from monitoring.challenger_comparisons") == "wait"

    # while the champion scores a month, a person moves the alias: it waits for its turn
    scoring = synthetic.started("score", "--month", "2024-04")
    scoring.wait_to_say("score")
    assert scoring.is_running
    assert "champion is v2" in synthetic.housing("promote", "v2").stdout
    assert scoring.wait().returncode == 0
    assert "champion is v1" in synthetic.housing("rollback").stdout
    assert synthetic.one("select model_version from training.model_versions where status = 'champion'") == "v1"
    assert synthetic.query(f"{mine} and split <> 'eval' order by all").equals(before)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["status", "--dataset", "hbd"], "unknown dataset 'hbd'; known are: ames, hdb, house_data, housets"),
        (["ingest", "no/such/file.csv"], "no/such/file.csv"),
        (["score", "--month", "May"], "'May' is not a month; write YYYY-MM"),
        (["status", "--dataset", "ames"], "type: housing run -d ames"),
        (["run", "--dataset", "ames"], "nothing has landed for ames"),
    ],
)
def test_a_mistake_gets_one_sentence_and_a_non_zero_status(
    synthetic: Home, arguments: list[str], sentence: str
) -> None:
    done = synthetic.typed(*arguments, check=False)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
