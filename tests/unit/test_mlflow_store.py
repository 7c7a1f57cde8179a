"""MLflow's store as the product makes it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ml.mlflow_store import close_dead_runs, experiment_of, open_registry
from ml.settings import Settings
from tests.prepared import forked


def make_store(home: Path) -> None:
    open_registry(Settings(home=home)).search_experiments()


def test_a_process_killed_while_it_makes_the_store_leaves_none_and_the_next_one_makes_it(tmp_path: Path) -> None:
    folder = tmp_path / "mlflow"
    maker = forked(make_store, tmp_path)
    aside = folder / "mlflow.db.tmp"
    while maker.is_alive() and not (aside.exists() and aside.stat().st_size):
        time.sleep(0.01)
    assert maker.pid
    os.kill(maker.pid, signal.SIGKILL)
    maker.join()
    assert maker.exitcode == -signal.SIGKILL, "it ended before it was struck"
    assert aside.exists() and not (folder / "mlflow.db").exists()
    make_store(tmp_path)
    assert not list(folder.glob("*.tmp*"))


def test_two_that_make_the_store_at_once_share_it(tmp_path: Path) -> None:
    makers = [forked(make_store, tmp_path) for _ in range(2)]
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0]
    make_store(tmp_path)


# a quotation mark in the path broke the search
def test_runs_of_a_killed_process_are_closed_in_a_home_of_any_name(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / """l'été "q" """, dataset="hdb")
    client = open_registry(settings)
    experiment = experiment_of(client, settings)
    mine, other = (
        client.create_run(experiment, tags={"warehouse": str(warehouse)}).info.run_id
        for warehouse in (settings.warehouse, tmp_path / "other.duckdb")
    )
    assert close_dead_runs(client, settings) == [f"run {mine} was killed before it ended"]
    assert [client.get_run(run).info.status for run in (mine, other)] == ["KILLED", "RUNNING"]
