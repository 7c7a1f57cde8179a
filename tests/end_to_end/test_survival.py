"""What must not break: killed processes at every step, two runs at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ml.warehouse import warehouse_lock
from tests import factories
from tests.built import built_home
from tests.conftest import Home

#: What two homes are compared by: times, run ids and paths differ, rows must not.
SAME = {
    "raw.observations": "select * exclude (_loaded_at)",
    "intermediate.int_observations_labelled": "select * exclude (_loaded_at)",
    "intermediate.int_observations_rejected": "select * exclude (_loaded_at)",
    # which load a row was built after depends on when runs were started, its content does not
    "features.encodings": "select * exclude (built_through_batch)",
    "features.features": "select * exclude (built_through_batch)",
    # a version that was registered by halves is deleted and its number is not given again
    "training.model_versions": "select status, n_train, n_eval, model_sha256, data_fingerprint",
    "predictions.predictions": "select observation_id, kind, split, month, predicted_price",
    "monitoring.accuracy": "select split, kind, population, n, round(mae, 6), round(mdape_pct, 9), status",
}

#: Steps as the command names them on stderr, in order.
STEPS = [
    "load and validate landed files",
    "open the model registry",
    "register the version",
    "score",
    "publish the snapshot",
]


def test_a_run_killed_at_every_step_ends_with_the_rows_of_an_undisturbed_one(home) -> None:
    killed, undisturbed = home("housets", "killed"), home("housets", "undisturbed")
    # of a shape that passes its gate, so that there is something to score
    rows = factories.housets_rows(zips=30, since="2015-01", duplicates=5, outliers=3)
    for made in (killed, undisturbed):
        made.land("history.csv", factories.without_month(rows, "2023-12"))
    struck = {step: killed.killed("run", during=step) for step in STEPS}
    # and in the middle of dbt
    for made in (killed, undisturbed):
        made.land("last_month.csv", factories.with_month(rows, "2023-12"))
    struck["dbt"] = killed.killed_in_dbt("run", during="features/features")
    killed.housing("run")
    undisturbed.housing("run")
    assert undisturbed.one("select count(*) from predictions.predictions where split = 'holdout'")
    assert all(struck.values()), f"ended before it was struck: {struck}"
    for table, columns in SAME.items():
        left, right = (h.query(f"{columns} from {table} order by all") for h in (killed, undisturbed))
        assert left.equals(right), f"{table} differs from an undisturbed run"
    assert not list(killed.settings.published.parent.glob("*.tmp*")), "a half-written snapshot was left behind"


def test_three_killed_trainings_ask_a_person_and_no_fourth_starts(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    built = built_home(tmp_path_factory)
    shutil.copytree(built.settings.home, tmp_path / "home", symlinks=True)
    made = Home(tmp_path / "home", "housets")
    newest = "select decision, reasons from monitoring.retrain_decisions order by month desc limit 1"
    assert made.query(newest).to_pylist()[0]["decision"] == "retrain"
    for _ in range(3):
        assert made.killed("retrain", during="select training rows"), "it ended before it was struck"
    assert "needs_human" in made.housing("retrain").stdout
    judged = made.query(newest).to_pylist()[0]
    assert judged["decision"] == "needs_human" and "trainings_died" in judged["reasons"]
    assert "needs_human" in made.housing("retrain").stdout
    assert made.query("select finished_at from training.retrain_attempts").to_pylist() == [{"finished_at": None}] * 3
    assert made.query("select model_version, status from training.model_versions").to_pylist() == [
        {"model_version": "v1", "status": "champion"}
    ]


def test_a_second_run_says_who_holds_the_warehouse(home, monkeypatch: pytest.MonkeyPatch) -> None:
    made = home("hdb")
    factories.write_months(factories.hdb_rows("2020-01", months=2, per_month=20), made.settings.landing)
    monkeypatch.setenv("HOUSING_LOCK_TIMEOUT_S", "1")
    with warehouse_lock(made.settings, "a long run"):
        monkeypatch.delenv("HOUSING_LOCK_HELD")
        done = made.housing("run", check=False)
        monkeypatch.setenv("HOUSING_LOCK_HELD", str(made.settings.warehouse.with_suffix(".lock")))
    assert done.returncode != 0
    assert f"held by process {os.getpid()} (a long run, since" in done.stderr
