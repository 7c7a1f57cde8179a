"""What runs in Dagster's own process to save time: its event log with files that stay open, and dbt."""

from __future__ import annotations

import os
import queue
import socket
from pathlib import Path
from typing import cast

import dagster as dg
import pytest

from dagster_project import pipeline
from dagster_project.alerting import HOST, PROCESS
from dagster_project.automation import forget_dead_runs
from dagster_project.event_log import OPEN_FILES, EventLog
from dagster_project.resources import POOL, prepare_environment
from dagster_project.transform.dbt import DbtError, run_dbt
from ml.settings import Settings


@dg.asset
def something() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"rows": 1})


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    made = Settings(home=tmp_path, dataset="hdb")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    prepare_environment(made)
    return made


def test_events_of_many_runs_are_read_by_others_and_few_files_stay_open(settings: Settings) -> None:
    with dg.DagsterInstance.get() as writes:
        log = cast(EventLog, writes.event_log_storage)
        assert type(log) is EventLog
        runs = [dg.materialize([something], instance=writes).run_id for _ in range(OPEN_FILES + 2)]
        assert len(log._engines) == OPEN_FILES
        # as the UI does while a run goes on
        with dg.DagsterInstance.get() as reads:
            assert len(reads.fetch_materializations(something.key, limit=99).records) == len(runs)
            assert all(any(e.is_dagster_event for e in reads.all_logs(run)) for run in runs)
    assert not log._engines


def test_who_watches_a_run_hears_of_each_event_at_once(settings: Settings) -> None:
    with dg.DagsterInstance.get() as writes, dg.DagsterInstance.get() as watches:
        run = dg.materialize([something], instance=writes).run_id
        stored = writes.all_logs(run)
        heard: queue.Queue[str] = queue.Queue()

        def hear(entry: dg.EventLogEntry, _: str) -> None:
            heard.put(entry.message)

        cursor = watches.event_log_storage.get_records_for_run(run).cursor
        watches.watch_event_logs(run, cursor, hear)
        for said in ("one", "two"):
            writes.event_log_storage.store_event(stored[0]._replace(user_message=said, dagster_event=None))
            assert heard.get(timeout=10) == said
        watches.event_log_storage.end_watch(run, hear)


# the run of the UI would wait for the warehouse, which the command holds for all of its steps
def test_a_command_does_not_wait_for_a_place_that_a_run_of_the_ui_has(settings: Settings) -> None:
    @dg.op(pool=POOL)
    def write() -> None:
        pass

    @dg.job
    def writes() -> None:
        write()

    command = pipeline._Session(settings, "a test", lambda *_: None)
    with dg.DagsterInstance.get() as ui:
        log = ui.event_log_storage
        log.initialize_concurrency_limit_to_default(POOL)
        assert log.claim_concurrency_slot(POOL, "the run of the UI", "a step").is_claimed
        with command:
            assert writes.execute_in_process(instance=command.instance).success
        # others still do
        assert log.supports_global_concurrency_limits
        assert not log.claim_concurrency_slot(POOL, "another run of the UI", "a step").is_claimed


def test_a_run_whose_process_is_gone_leaves_its_place(settings: Settings) -> None:
    with dg.DagsterInstance.get() as instance:
        gone, alive, others = (
            instance.create_run_for_job(
                dg.GraphDefinition(name="land").to_job(), status=dg.DagsterRunStatus.STARTED, tags=tags
            )
            for tags in (
                {PROCESS: str(2**22 + 1), HOST: socket.gethostname()},
                {PROCESS: str(os.getpid()), HOST: socket.gethostname()},
                {PROCESS: str(2**22 + 1), HOST: "another container"},
            )
        )
        instance.event_log_storage.initialize_concurrency_limit_to_default(POOL)
        assert instance.event_log_storage.claim_concurrency_slot(POOL, gone.run_id, "a step").is_claimed
        forget_dead_runs(instance)
        statuses = [instance.get_run_by_id(run.run_id) for run in (gone, alive, others)]
        assert [s and s.status.value for s in statuses] == ["FAILURE", "STARTED", "STARTED"]
        assert instance.event_log_storage.claim_concurrency_slot(POOL, alive.run_id, "a step").is_claimed


# a home made before this storage was there has Dagster's own, at the same place
def test_events_stand_where_dagster_itself_would_look_for_them(settings: Settings) -> None:
    with dg.DagsterInstance.get() as instance:
        run = dg.materialize([something], instance=instance).run_id
    (settings.dagster_home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    with dg.DagsterInstance.get() as instance:
        assert type(instance.event_log_storage) is not EventLog
        assert instance.all_logs(run)
        assert len(instance.fetch_materializations(something.key, limit=9).records) == 1


def test_a_dbt_that_fails_says_why_and_leaves_no_trace_in_the_process(settings: Settings) -> None:
    before = dict(os.environ), Path.cwd()
    with pytest.raises(DbtError, match="nothing has landed for dataset 'hdb'"):
        run_dbt(settings, "build", "--select", "int_observations_checked")
    assert before == (dict(os.environ), Path.cwd())
