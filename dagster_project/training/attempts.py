"""Trainings that a decision asked for. Each run is a row, so that SQL can tell when to stop and ask a person."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg
import duckdb

from dagster_project.alerting import DATASET_TAG, RETRAIN
from ml.warehouse import utc_now

#: Failed, killed or interrupted; what somebody ended in the UI is `canceled`, and whoever did so wants no other run.
DIED = [dg.DagsterRunStatus.FAILURE]

BEGIN = "insert into training.retrain_attempts values (?, ?, ?, null, ?)"


@contextmanager
def attempt(connection: duckdb.DuckDBPyConnection, decision_id: str, number: int, run_id: str) -> Iterator[None]:
    """A row that says that a training was started, and when it ended; none for a training nothing asked for."""
    if not decision_id:
        yield
        return
    connection.execute(BEGIN, [decision_id, number, utc_now(), run_id])
    yield
    connection.execute("update training.retrain_attempts set finished_at = ? where run_id = ?", [utc_now(), run_id])


def died_runs(instance: dg.DagsterInstance, dataset: str) -> Sequence[dg.RunRecord]:
    """Retrainings that did not end well, wherever on their way."""
    return instance.get_run_records(dg.RunsFilter(job_name=RETRAIN, statuses=DIED, tags={DATASET_TAG: dataset}))


def remember_died(connection: duckdb.DuckDBPyConnection, instance: dg.DagsterInstance, dataset: str) -> None:
    """Rows of runs that died on their way, before their training began."""
    known = {run_id for (run_id,) in connection.execute("select run_id from training.retrain_attempts").fetchall()}
    for record in died_runs(instance, dataset):
        run = record.dagster_run
        config: Any = run.run_config
        asked = config.get("ops", {}).get("training__model_versions", {}).get("config", {})
        if run.run_id not in known and asked.get("decision_id"):
            started = record.create_timestamp.replace(tzinfo=None)
            connection.execute(BEGIN, [asked["decision_id"], asked["attempt"], started, run.run_id])
