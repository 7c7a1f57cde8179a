"""The MLflow store of a home: opened, made on first use, and rid of runs whose process died.

What is registered in it stands in ``ml/registry.py``.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ml.settings import QUIET, Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: Where MLflow keeps absolute addresses of artifacts.
ADDRESSES = [
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
]


def open_registry(settings: Settings) -> MlflowClient:
    """Client of the tracking store and registry; creates the SQLite store on first use (seconds)."""
    os.environ.update({k: v for k, v in QUIET.items() if k not in os.environ})
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # a lock file in the working directory is not the model's
    from mlflow import MlflowClient

    # only after the import, which sets its own level
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)  # a model without a signature, on purpose
    if settings.mlflow_uri.startswith("sqlite:///"):
        store = Path(settings.mlflow_uri.removeprefix("sqlite:///"))
        _make_store(store)
        _follow_home(store, settings)
    return MlflowClient(tracking_uri=settings.mlflow_uri, registry_uri=settings.mlflow_uri)


def close_dead_runs(client: MlflowClient, settings: Settings) -> list[str]:
    """Runs of this warehouse that still run were killed: whoever holds the warehouse knows that no other trains."""
    experiment = client.get_experiment_by_name(settings.registered_model)
    if experiment is None:
        return []
    running = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
    # compared here: a path may hold what the language of searches cannot quote
    dead = [run for run in running if run.data.tags.get("warehouse") == str(settings.warehouse)]
    for run in dead:
        client.set_terminated(run.info.run_id, "KILLED")
    return [f"run {run.info.run_id} was killed before it ended" for run in dead]


def experiment_of(client: MlflowClient, settings: Settings) -> str:
    """Id of the dataset's MLflow experiment, made when it is missing."""
    name = settings.registered_model
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    local = settings.mlflow_uri.startswith("sqlite:///")
    where = (settings.mlflow_artifacts / settings.dataset).as_uri() if local else None
    return client.create_experiment(name, artifact_location=where)


def _make_store(path: Path) -> None:
    """MLflow's SQLite file, unless it stands, made aside and renamed.

    Its tables come from 68 migrations. A process killed between two of them would leave a file that no MLflow opens.
    """
    if path.exists():
        return
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp")
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        # the kernel lets go of it when a process dies; runs of two datasets share the store
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        for left in path.parent.glob(f"{aside.name}*"):
            left.unlink()
        SqlAlchemyStore(f"sqlite:///{aside}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        aside.replace(path)


def _follow_home(store: Path, settings: Settings) -> None:
    """A home that was moved or copied, its parent renamed: MLflow would look for its artifacts where it was."""
    here = settings.mlflow_artifacts.as_uri()
    with closing(sqlite3.connect(store)) as connection:
        asked = "select artifact_location from experiments where name = ?"
        found = connection.execute(asked, [settings.registered_model]).fetchone()
        there = found[0].removesuffix(f"/{settings.dataset}") if found else here
        if there == here:
            return
        # in one transaction: other datasets of the home have moved with it
        with connection:
            for table, column in ADDRESSES:
                connection.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                    [here, len(there) + 1, len(there) + 1, f"{there}/"],
                )
