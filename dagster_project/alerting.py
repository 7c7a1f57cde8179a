"""When alerts are sent: each minute by a sensor and at the end of a ``housing`` command. Runs as sources of events.

What is sent, where to and how often it is tried again stands in ``ml/alerts.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster_shared.error import SerializableErrorInfo

from dagster_project.resources import Housing
from ml.alerts import Delivery, Event, collect, deliver, known_keys
from ml.settings import Settings

#: Run tag: the dataset of a run, where several share one instance.
DATASET_TAG = "housing/dataset"
#: Run tag: the `housing` command that a run is of.
COMMAND = "housing/command"
#: What Dagster says of a run that it found dead.
OUTSIDE = "marked as failed from outside"
#: Run tags: the process of a `housing` command, and the machine or container in which that number is its.
PROCESS, HOST = "housing/pid", "housing/host"
#: How far back runs are looked at, should nobody have looked for a while.
LOOK_BACK = timedelta(days=30)
RETRAIN = "retrain"
INTERRUPTED = "the run was interrupted"
#: Names of the errors of a step that somebody stopped.
INTERRUPTS = frozenset({"DagsterExecutionInterruptedError", "KeyboardInterrupt"})


def run_events(instance: dg.DagsterInstance, dataset: str, known: Collection[str] = ()) -> list[Event]:
    """Failed runs and retrainings that started, of this dataset or of none.

    Those of ``known`` keys are left out, and so are commands that were interrupted.
    """
    since = datetime.now(UTC) - LOOK_BACK
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since)
    retrains = dg.RunsFilter(job_name=RETRAIN, updated_after=since)
    found: list[Event] = []
    for record in instance.get_run_records(failed):
        key = f"run_failed/{record.dagster_run.run_id}"
        if key not in known and _is_of(record, dataset):
            why = failure_reason(instance, record.dagster_run.run_id)
            if COMMAND in record.dagster_run.tags and why.endswith(INTERRUPTED):
                continue  # whoever typed the command ended it
            what = f"{_name(record)} failed: {why}"
            found.append(Event(key, "run_failed", _utc(record.end_time or record.update_timestamp.timestamp()), what))
    for record in instance.get_run_records(retrains):
        key = f"retrain_started/{record.dagster_run.run_id}"
        if record.start_time and key not in known and _is_of(record, dataset):
            tags = {
                k: v
                for k, v in record.dagster_run.tags.items()
                if k.startswith("housing/") and k not in {PROCESS, HOST}
            }
            why = ", ".join(f"{k.removeprefix('housing/')} {v}" for k, v in sorted(tags.items()))
            found.append(Event(key, "retrain_started", _utc(record.start_time), f"{_name(record)} started: {why}"))
    return found


def innermost(error: SerializableErrorInfo) -> SerializableErrorInfo:
    """What was wrong in the first place; of an error in another process its words, not the text of its traceback."""
    while error.cause and error.cause.cls_name != "_RemoteTraceback":
        error = error.cause
    return error


def words(error: SerializableErrorInfo) -> str:
    """What an error says, without the place where Python finds its class, which stands before that."""
    said = error.message.strip()
    return said.partition(f"{error.cls_name}: ")[2] or said


def failure_reason(instance: dg.DagsterInstance, run_id: str) -> str:
    """First failed step of a run and the innermost message of its error, or what Dagster said of the run."""
    steps = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=1).records
    for record in steps:
        event = record.event_log_entry.dagster_event
        if event and event.step_failure_data.error:
            error = innermost(event.step_failure_data.error)
            # of an interrupt there is only the name of its class
            said = INTERRUPTED if error.cls_name in INTERRUPTS else words(error)
            return f"{event.step_key}: {said}"
    ends = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.RUN_FAILURE, limit=1).records
    # of a run whose process was killed only the event tells; where Dagster found it dead, the engine's last word before
    if ends and OUTSIDE in _message(ends[0]):
        of_engine = dg.DagsterEventType.ENGINE_EVENT
        ends = instance.get_records_for_run(run_id, of_type=of_engine, limit=1, ascending=False).records or ends
    return (_message(ends[0]) if ends else "") or "see the run in the Dagster UI (make ui)"


def _message(record: dg.EventLogRecord) -> str:
    entry = record.event_log_entry
    return entry.user_message or (entry.dagster_event.message if entry.dagster_event else None) or ""


def notify(settings: Settings, instance: dg.DagsterInstance, *, budget_s: float = 10.0) -> Delivery:
    """Collect events of the snapshot and of the instance, and deliver what is due in about ``budget_s`` seconds."""
    events = collect(settings) + run_events(instance, settings.dataset, known_keys(settings))
    return deliver(settings, events, budget_s=budget_s)


def notify_quietly(settings: Settings, instance: dg.DagsterInstance) -> None:
    """``notify`` for the end of a command: alerts never fail what they tell about, and the sensor tries again."""
    try:
        notify(settings, instance)
    except Exception:
        logging.getLogger(__name__).warning("alerts could not be collected", exc_info=True)


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Each minute, send news (HOUSING_ALERT_* says where to) and try again what was not delivered.",
)
def alert_sensor(context: dg.SensorEvaluationContext, housing: Housing) -> Iterator[dg.SkipReason]:
    delivery = notify(housing.settings, context.instance)
    for event in delivery.new:
        context.log.info(f"{event.kind}: {event.text}")
    yield dg.SkipReason(str(delivery))


def _is_of(record: dg.RunRecord, dataset: str) -> bool:
    return record.dagster_run.tags.get(DATASET_TAG, dataset) == dataset


def _name(record: dg.RunRecord) -> str:
    return f"run {record.dagster_run.run_id[:8]} of job {record.dagster_run.job_name}"


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
