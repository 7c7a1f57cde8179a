"""What must not break: killed processes at every step, two runs at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ml.warehouse import warehouse_lock
from tests import factories
from tests.conftest import Home

#: What two homes are compared by: times, run ids and paths differ, rows must not.
SAME = {
    "raw.observations": "select * exclude (_loaded_at)",
    "intermediate.int_observations_labelled": "select * exclude (_loaded_at)",
    "intermediate.int_observations_rejected": "select * exclude (_loaded_at)",
    # which load a row was built after depends on when runs were started, its content does not
    "features.encodings": "select * exclude (built_through_batch)",
    "features.features": "select * exclude (built_through_batch)",
    "predictions.predictions": "select distinct observation_id, split, month, predicted_price",
}

#: Steps as the command names them on stderr, in order.
STEPS = [
    "load and validate landed files",
    "select training rows",
    "register the version",
    "score",
    "publish the snapshot",
]


def kill_during(home: Home, step: str, delay: float) -> bool:
    """Start ``housing run``, kill -9 its whole process group ``delay`` seconds into ``step``. Was it still running?"""
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "housing"), "run"],
        env={**os.environ, **home.settings.environment},
        cwd=home.settings.home.parent,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if step in line:
            time.sleep(delay)
            break
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    return running


def test_a_run_killed_at_every_step_ends_with_the_rows_of_an_undisturbed_one(home) -> None:
    killed, undisturbed = home("hdb", "killed"), home("hdb", "undisturbed")
    months = factories.hdb_rows("2020-01", months=30, per_month=80, duplicates=5, outliers=3)
    for made in (killed, undisturbed):
        factories.write_months(months, made.settings.landing)
    struck = [kill_during(killed, step, delay=0.05) for step in STEPS]
    # dbt comes right after the load: strike once more, in the middle of it
    factories.write_csv(factories.hdb_rows("2022-07", months=1, per_month=80), killed.settings.landing / "2022-07.csv")
    factories.write_csv(
        factories.hdb_rows("2022-07", months=1, per_month=80), undisturbed.settings.landing / "2022-07.csv"
    )
    struck.append(kill_during(killed, STEPS[0], delay=4.0))
    killed.housing("run")
    undisturbed.housing("run")
    # a quick machine may finish scoring before it is struck; those kills have tests of their own beside the code
    assert sum(struck) >= 4, "too few of the runs were still going when they were to be killed"
    for table, columns in SAME.items():
        left, right = (h.query(f"{columns} from {table} order by all") for h in (killed, undisturbed))
        assert left.equals(right), f"{table} differs from an undisturbed run"
    assert not list(killed.settings.published.parent.glob("*.tmp*")), "a half-written snapshot was left behind"


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
