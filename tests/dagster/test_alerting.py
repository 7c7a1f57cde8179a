"""Runs as sources of alerts, on an ephemeral instance: what failed and what was retrained, each once."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError

from dagster_project.alerting import COMMAND, DATASET_TAG, alert_sensor, failure_reason, run_events
from dagster_project.definitions import build_defs
from dagster_project.resources import Housing
from ml.alerts import log_file
from ml.settings import Settings


@dg.op
def break_down() -> None:
    try:
        raise ConnectionError("no route to postgresql://u:hunter22@db")
    except ConnectionError as error:
        raise ValueError("the file could not be read") from error


@dg.op
def be_interrupted() -> None:
    raise DagsterExecutionInterruptedError


@dg.op
def work() -> None:
    """Nothing to do."""


@dg.job
def land() -> None:
    break_down()


@dg.job
def score() -> None:
    be_interrupted()


@dg.job
def retrain() -> None:
    work()


def test_failed_runs_and_started_retrainings_are_told_once(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, dataset="hdb")
    with dg.DagsterInstance.ephemeral() as instance:
        land.execute_in_process(instance=instance, raise_on_error=False)
        land.execute_in_process(instance=instance, raise_on_error=False, tags={DATASET_TAG: "ames"})
        retrain.execute_in_process(instance=instance, tags={"housing/reason": "mdape_pct is 9.7", DATASET_TAG: "hdb"})
        found = {e.kind: e for e in run_events(instance, "hdb")}
        assert len(run_events(instance, "hdb")) == 2
        assert "of job land failed: break_down: no route to " in found["run_failed"].text
        assert found["retrain_started"].text.endswith("of job retrain started: dataset hdb, reason mdape_pct is 9.7")
        assert run_events(instance, "hdb", {e.key for e in found.values()}) == []

        context = dg.build_sensor_context(
            instance=instance, resources={"housing": Housing(home=str(tmp_path), dataset="hdb")}
        )
        messages = [alert_sensor.evaluate_tick(context).skip_message for _ in range(3)]
    assert messages == ["2 new events, 2 sent by log", "0 new events", "0 new events"]
    lines = log_file(settings).read_text().splitlines()
    assert len(lines) == 2
    assert "hunter22" not in "".join(lines)


def test_killed_and_interrupted_runs_are_told_as_such() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        killed = instance.create_run_for_job(land, status=dg.DagsterRunStatus.STARTED)
        instance.report_run_failed(killed, "the process of this run was killed")
        assert failure_reason(instance, killed.run_id) == "the process of this run was killed"
        dead = instance.create_run_for_job(land, status=dg.DagsterRunStatus.STARTED)
        instance.report_engine_event("process 7 was terminated by signal 9 (SIGKILL)", dead)
        instance.report_run_failed(dead)  # as run monitoring does
        assert failure_reason(instance, dead.run_id) == "process 7 was terminated by signal 9 (SIGKILL)"
        with pytest.raises(DagsterExecutionInterruptedError):
            score.execute_in_process(instance=instance)
        (interrupted,) = instance.get_runs(dg.RunsFilter(job_name="score"))
        assert failure_reason(instance, interrupted.run_id) == "be_interrupted: the run was interrupted"
        # of a run of the UI somebody may not know; who typed a command has interrupted it
        assert len(run_events(instance, "hdb")) == 3
        with pytest.raises(DagsterExecutionInterruptedError):
            score.execute_in_process(instance=instance, tags={COMMAND: "housing score"})
        assert len(run_events(instance, "hdb")) == 3


def test_the_sensor_runs_as_shipped_and_illegal_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert alert_sensor.default_status == dg.DefaultSensorStatus.RUNNING
    monkeypatch.setenv("HOUSING_ALERT_SMTP_HOST", "mail.example")
    with pytest.raises(ValueError, match="HOUSING_ALERT_SMTP_FROM"):
        build_defs(Settings(home=tmp_path, dataset="hdb"))
