"""Retraining is an edge: one decision, one run, however often the sensor looks; a run that dies is tried again.

The decisions stand in a real snapshot file, the runs in a real instance. That a run trains is tests/end_to_end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import cast

import dagster as dg
import duckdb
import pytest

from dagster_project import automation
from dagster_project.alerting import DATASET_TAG
from dagster_project.automation import (
    COMMAND,
    PREDICTIONS,
    again_sensor,
    follow_up,
    landing_sensor,
    newcomer_sensor,
    retrain_request,
    retrain_sensor,
    score_monthly,
)
from dagster_project.resources import Housing
from dagster_project.training.attempts import remember_died
from ml.contract import Contract, load
from ml.settings import Settings
from ml.verdicts import died_attempts
from ml.warehouse import connect, create_tables, utc_now

#: A month that was scored and whose prices are not known yet.
UNPRICED = "unpriced"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, dataset="hdb")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def publish(settings: Settings, *decisions: tuple[str, str, str], champion: str = "v1") -> None:
    """A snapshot with these decisions: version, month and decision."""
    settings.published.parent.mkdir(parents=True, exist_ok=True)
    settings.published.unlink(missing_ok=True)
    with duckdb.connect(str(settings.published)) as connection:
        connection.execute(
            """
            create schema training; create schema monitoring;
            create table training.model_versions (model_version varchar, status varchar);
            create table monitoring.retrain_decisions (
                decision_id varchar, model_version varchar, month date, decision varchar, reasons varchar[],
                mdape_pct double, new_labels bigint, died_attempts integer
            )
            """
        )
        connection.execute("insert into training.model_versions values (?, 'champion')", [champion])
        for version, month, decision in decisions:
            reasons = ["too_few_prices"] if decision == UNPRICED else ["error", "level"]
            said = decision if decision != UNPRICED else "insufficient_data"
            connection.execute(
                "insert into monitoring.retrain_decisions values (?, ?, ?, ?, ?, 5.25, 700, 0)",
                [f"{version} {month}", version, f"{month}-01", said, reasons],
            )


def tick(
    settings: Settings, instance: dg.DagsterInstance, *, status: dg.DagsterRunStatus | None = None
) -> list[dg.RunRequest]:
    """One look of the sensor; as the daemon does, a request whose run key is known starts nothing."""
    context = dg.build_sensor_context(
        instance=instance,
        resources={"housing": Housing(home=str(settings.home), dataset=settings.dataset)},
    )
    known = {run.tags.get("dagster/run_key") for run in instance.get_runs()}
    said = cast("Iterable[object]", retrain_sensor(context))
    requests = [r for r in said if isinstance(r, dg.RunRequest) and r.run_key not in known]
    for request in requests:
        run = dg.DagsterRun(
            job_name=request.job_name or "",
            tags={**request.tags, "dagster/run_key": request.run_key or ""},
            status=status or dg.DagsterRunStatus.SUCCESS,
        )
        instance.add_run(run)
    return requests


def test_nothing_starts_without_a_snapshot_a_champion_or_a_decision(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    assert tick(settings, instance) == []
    publish(settings, ("v1", "2022-03", "retrain"), champion="v2")
    assert tick(settings, instance) == []
    for decision in ("hold", "cooldown", "insufficient_data", "needs_human"):
        publish(settings, ("v1", "2022-02", "retrain"), ("v1", "2022-03", decision))
        assert tick(settings, instance) == [], decision


def test_a_month_that_is_not_priced_yet_takes_back_nothing(settings: Settings, instance: dg.DagsterInstance) -> None:
    publish(settings, ("v1", "2022-03", "retrain"), ("v1", "2022-04", UNPRICED))
    (request,) = tick(settings, instance)
    assert request.tags["housing/decision"] == "hdb v1 2022-03"


def test_one_decision_is_one_run_however_often_the_sensor_looks(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    publish(settings, ("v1", "2022-03", "retrain"))
    (request,) = tick(settings, instance)
    assert request.job_name == "retrain"
    assert request.run_config["ops"]["training__model_versions"]["config"] == {
        "through": "2022-03", "decision_id": "v1 2022-03", "attempt": 1,
    }  # fmt: skip
    assert request.tags["housing/reasons"] == "error, level"
    assert request.tags["housing/mdape_pct"] == "5.25"
    assert sum(len(tick(settings, instance)) for _ in range(50)) == 0
    # recovered, then wrong again in a later month: a new edge
    publish(settings, ("v1", "2022-03", "retrain"), ("v1", "2022-04", "hold"))
    assert tick(settings, instance) == []
    publish(settings, ("v1", "2022-03", "retrain"), ("v1", "2022-04", "hold"), ("v1", "2022-07", "retrain"))
    assert [r.run_key for r in tick(settings, instance)] == ["hdb v1 2022-07 #1"]
    assert sum(len(tick(settings, instance)) for _ in range(50)) == 0


def test_a_champion_that_nothing_explains_yet_is_explained_once(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    def look() -> dg.RunRequest | None:
        context = dg.build_sensor_context(
            instance=instance, resources={"housing": Housing(home=str(settings.home), dataset=settings.dataset)}
        )
        said = newcomer_sensor(context)
        return said if isinstance(said, dg.RunRequest) else None

    assert look() is None
    publish(settings, champion="v2")
    assert look() is None, "nothing is scored yet"
    with duckdb.connect(str(settings.published)) as connection:
        connection.execute(
            """
            create schema predictions;
            create table predictions.predictions as
            select 'v' || unnest([1, 2]) as model_version, 'holdout' as split, 'batch' as mode;
            create table predictions.explanations as select 'v1' as model_version
            """
        )
    request = look()
    assert request and (request.run_key, request.tags["housing/dataset"]) == ("hdb v2 explained", "hdb")
    assert request.tags["dagster/asset_partition_range_start"] == "2017-01-01"
    with duckdb.connect(str(settings.published)) as connection:
        connection.execute("insert into predictions.explanations values ('v2')")
    assert look() is None


def test_two_datasets_decide_at_once_and_neither_stands_in_for_the_other(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    other = Settings(home=settings.home, dataset="housets")
    for each in (settings, other):
        publish(each, ("v1", "2022-03", "retrain"))
    assert [r.run_key for r in tick(settings, instance)] == ["hdb v1 2022-03 #1"]
    assert [r.run_key for r in tick(other, instance)] == ["housets v1 2022-03 #1"]
    assert tick(settings, instance) == tick(other, instance) == []


def test_a_run_that_dies_is_tried_again_a_bounded_number_of_times_then_a_person_is_asked(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(settings, ("v1", "2022-03", "retrain"))
    failed = dg.DagsterRunStatus.FAILURE
    keys = [r.run_key for r in tick(settings, instance, status=failed)]
    assert keys == ["hdb v1 2022-03 #1"]
    # not at once: the second waits a minute, the third two
    assert tick(settings, instance) == []
    monkeypatch.setattr(automation, "FIRST_PAUSE", automation.FIRST_PAUSE * 0)
    for _ in range(10):
        keys += [r.run_key for r in tick(settings, instance, status=failed)]
    assert keys == [
        "hdb v1 2022-03 #1", "hdb v1 2022-03 #2", "hdb v1 2022-03 #3", "hdb v1 2022-03 gave up",
    ]  # fmt: skip
    assert [run.job_name for run in instance.get_runs()].count("retrain") == load("hdb").retraining.max_attempts
    assert [run.job_name for run in instance.get_runs()].count("monitor") == 1


def test_a_training_that_somebody_ended_is_not_started_again(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(settings, ("v1", "2022-03", "retrain"))
    assert len(tick(settings, instance, status=dg.DagsterRunStatus.CANCELED)) == 1
    monkeypatch.setattr(automation, "FIRST_PAUSE", automation.FIRST_PAUSE * 0)
    assert tick(settings, instance) == []


def test_a_run_that_dies_before_its_training_is_an_attempt_too(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    decision = {
        "decision_id": "v1 2022-03",
        "month": date(2022, 3, 1),
        "reasons": [],
        "mdape_pct": 5.0,
        "new_labels": 1,
    }
    status = dg.DagsterRunStatus
    statuses = [status.FAILURE, status.FAILURE, status.CANCELED, status.SUCCESS]
    for dataset in ("hdb", "housets"):
        for number, status in enumerate(statuses, start=1):
            asked = retrain_request(dataset, decision, attempt=number)
            run = dg.DagsterRun(
                job_name=asked.job_name or "", run_config=dict(asked.run_config), tags=dict(asked.tags), status=status
            )
            instance.add_run(run)
    # trained by hand in the UI: nothing asked for it
    instance.add_run(
        dg.DagsterRun(job_name="retrain", tags={"housing/dataset": "hdb"}, status=dg.DagsterRunStatus.FAILURE)
    )
    settings.warehouse.parent.mkdir(parents=True)
    with connect(settings) as connection:
        create_tables(connection, load("hdb"))
        for _ in range(2):
            remember_died(connection, instance, "hdb")
            assert died_attempts(connection, "v1 2022-03") == 2
        rows = connection.execute(
            "select attempt, started_at from training.retrain_attempts order by attempt"
        ).fetchall()
    assert [number for number, _ in rows] == [1, 2]
    assert all(abs((started - utc_now()).total_seconds()) < 60 for _, started in rows)


def test_a_landing_or_scoring_that_died_is_tried_again_a_bounded_number_of_times(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(job: str, status: dg.DagsterRunStatus, *, dataset: str = "hdb", **tags: str) -> None:
        instance.add_run(dg.DagsterRun(job_name=job, status=status, tags={"housing/dataset": dataset, **tags}))

    def asked() -> list[str | None]:
        context = dg.build_sensor_context(
            instance=instance, resources={"housing": Housing(home=str(settings.home), dataset="hdb")}
        )
        known = {run.tags.get("dagster/run_key") for run in instance.get_runs()}
        # as the daemon asks, which takes requests or one reason, not both
        found = again_sensor.evaluate_tick(context).run_requests or []
        return [r.job_name for r in found if r.run_key not in known]

    assert asked() == []
    add("score", dg.DagsterRunStatus.SUCCESS)
    add("score", dg.DagsterRunStatus.FAILURE, dataset="housets")
    assert asked() == []
    add("score", dg.DagsterRunStatus.FAILURE)
    assert asked() == [], "not at once"
    monkeypatch.setattr(automation, "FIRST_PAUSE", automation.FIRST_PAUSE * 0)
    add("land", dg.DagsterRunStatus.FAILURE)
    assert asked() == ["land", "score"]
    add("land", dg.DagsterRunStatus.CANCELED)
    assert asked() == ["score"], "somebody ended it in the UI"
    add("land", dg.DagsterRunStatus.STARTED)
    assert asked() == ["score"], "one that runs is waited for"
    add("score", dg.DagsterRunStatus.FAILURE)
    assert asked() == ["score"]
    add("score", dg.DagsterRunStatus.FAILURE)
    assert asked() == [], "a person is needed, whom the alerts tell"
    add("score", dg.DagsterRunStatus.SUCCESS)
    add("score", dg.DagsterRunStatus.FAILURE, **{COMMAND: "housing run"})
    assert asked() == [], "somebody typed it"
    add("score", dg.DagsterRunStatus.FAILURE)
    for _ in range(automation.MOST_RUNS):
        add("score", dg.DagsterRunStatus.FAILURE, **{COMMAND: "housing score"})
    assert asked() == ["score"], "what died unasked is not forgotten for typing errors"


def test_after_a_training_everything_pending_of_its_dataset_is_scored(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    def after(job: str = "retrain", assets: set[dg.AssetKey] | None = None, of: str | None = None) -> object:
        tags = {DATASET_TAG: of} if of else {}
        run = dg.DagsterRun(
            job_name=job, run_id="0" * 8 + "-0000-4000-8000-000000000000", tags=tags,
            asset_selection=frozenset(assets) if assets else None,
        )  # fmt: skip
        context = dg.build_run_status_sensor_context(
            sensor_name="follow_up", dagster_instance=instance, dagster_run=run,
            dagster_event=dg.DagsterEvent("PIPELINE_SUCCESS", job),
            resources={"housing": Housing(home=str(settings.home), dataset="hdb")},
        )  # fmt: skip
        return follow_up(context)

    for request in (after(), after(of="hdb")):
        assert isinstance(request, dg.RunRequest)
        assert request.run_key == "after 00000000-0000-4000-8000-000000000000"
        assert request.tags["dagster/asset_partition_range_start"] == "2017-01-01"
        assert request.tags["housing/dataset"] == "hdb"
    assert isinstance(after(of="ames"), dg.SkipReason)
    # what somebody materialised or backfilled in the UI
    by_hand = automation.IMPLICIT_JOB
    assert isinstance(after(by_hand, {PREDICTIONS}), dg.RunRequest)
    for job, assets in ((by_hand, automation.ENDS), (by_hand, None), ("score", None), ("tune", None)):
        assert isinstance(after(job, assets), dg.SkipReason), job


def test_a_dataset_without_dates_is_skipped_by_the_monthly_schedule(tmp_path: Path) -> None:
    # a run request of a month that is no partition fails the tick, each month anew
    for dataset, said in (("house_data", dg.SkipReason), ("hdb", dg.RunRequest)):
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_schedule_context(
                instance=instance, scheduled_execution_time=datetime(2024, 1, 1, 6),
                resources={"housing": Housing(home=str(tmp_path), dataset=dataset)},
            )  # fmt: skip
            assert isinstance(score_monthly(context), said), dataset


def test_a_file_that_comes_back_from_quarantine_is_loaded_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    landed, aside = settings.landing / "bad.csv", settings.home / "bad.csv"
    settings.landing.mkdir(parents=True)
    landed.write_text("half a file")
    keys: list[str] = []
    cursor: str | None = None

    def starts_a_run() -> bool:
        nonlocal cursor
        with dg.DagsterInstance.ephemeral() as instance:
            housing = Housing(home=str(settings.home), dataset="hdb")
            context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"housing": housing})
            said = list(cast("Iterable[object]", landing_sensor(context)))
            cursor = context.cursor
        # the daemon starts nothing for a key that it knows
        new = [r.run_key for r in said if isinstance(r, dg.RunRequest) and r.run_key not in keys]
        keys.extend(str(key) for key in new)
        return bool(new)

    assert starts_a_run()
    # each time with the size and the modification time that it had
    for _ in range(3):
        landed.rename(aside)
        assert not starts_a_run()
        aside.rename(landed)
        assert starts_a_run() and not starts_a_run()
    landed.rename(aside)
    (settings.landing / "other.csv").touch()
    assert starts_a_run()
    aside.rename(landed)
    assert starts_a_run()
    # quarantined and moved back between two looks, after the limits were changed
    changed = Contract.model_validate(load("hdb").model_dump() | {"landing": {"max_implausible_share": 0.9}})
    monkeypatch.setattr(Housing, "contract", property(lambda self: changed))
    assert starts_a_run() and not starts_a_run()
