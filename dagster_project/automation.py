"""When things run by themselves: jobs, the monthly scoring schedule, and the sensors that close the loop.

Files land -> `land`; then, and after each training, `score` scores what is pending, judges it and publishes; a decision
to train again starts `retrain` once. What a job does stands in the assets, what is decided in ``warehouse/``. All of
them are switched on as shipped.
"""

import hashlib
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

import dagster as dg

from dagster_project.alerting import COMMAND, DATASET_TAG, HOST, PROCESS
from dagster_project.predictions.partitions import first_and_last, scoring_months
from dagster_project.raw.landing import landing_state
from dagster_project.resources import Housing
from dagster_project.training.attempts import DIED
from ml.contract import Contract, add_months
from ml.promotion import published_newcomer
from ml.verdicts import published_decision

PREDICTIONS = dg.AssetKey(["predictions", "predictions"])
MODEL_VERSIONS = dg.AssetKey(["training", "model_versions"])

#: What is made month by month, of the champion.
SCORED = dg.AssetSelection.assets(
    PREDICTIONS, dg.AssetKey(["predictions", "explanations"]), dg.AssetKey(["predictions", "comparables"])
)

#: Made by hand only: hours of fitting that change no model.
EXPERIMENT_KEYS = (dg.AssetKey(["training", "model_selection"]), dg.AssetKey(["training", "tuning_trials"]))
EXPERIMENTS = dg.AssetSelection.assets(*EXPERIMENT_KEYS)

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"

#: From landed files to a version; everything else follows predictions.
TRAINING = dg.AssetSelection.assets(MODEL_VERSIONS).upstream()

land_job = dg.define_asset_job(
    "land",
    dg.AssetSelection.all() - EXPERIMENTS - SCORED - dg.AssetSelection.assets(MODEL_VERSIONS),
    description="Load what landed, rebuild what it touches, publish. Trains nothing, scores nothing.",
)
train_job = dg.define_asset_job(
    "train", TRAINING, description="Load what landed, rebuild features, train a version, gate and register it."
)
score_job = dg.define_asset_job(
    "score",
    dg.AssetSelection.all() - EXPERIMENTS - TRAINING,
    description="Score months with the champion, explain them, compare with actual prices, publish.",
)
monitor_job = dg.define_asset_job(
    "monitor",
    dg.AssetSelection.all() - EXPERIMENTS - TRAINING - SCORED,
    description="Compare predictions with actual prices and publish, without scoring.",
)
compare_job = dg.define_asset_job(
    "compare",
    dg.AssetSelection.assets(dg.AssetKey(["training", "model_selection"])),
    description="Fit the candidates of ml/models.yml on the folds.",
)
tune_job = dg.define_asset_job(
    "tune",
    dg.AssetSelection.assets(dg.AssetKey(["training", "tuning_trials"])),
    description="Search parameters on the folds.",
)
retrain_job = dg.define_asset_job(
    "retrain",
    TRAINING,
    description="The same as train, started by a row of monitoring.retrain_decisions, which its tags name.",
)
JOBS = [land_job, train_job, retrain_job, score_job, monitor_job, compare_job, tune_job]

#: Jobs behind which there is something to score and to judge.
FOLLOWED = frozenset(job.name for job in (land_job, train_job, retrain_job))
IMPLICIT_JOB = "__ASSET_JOB"
#: Assets from which nothing else is made.
ENDS = {*EXPERIMENT_KEYS, dg.AssetKey(["published", "snapshot"]), dg.AssetKey(["published", "report"])}

DECISION = "housing/decision"
REASONS = "housing/reasons"

#: So often in a row `land` and `score` are run in vain.
MOST_RUNS = 3
#: Newest runs among which those are, and commands that failed.
LOOKED_AT = 50
#: Before the second run of what died at first.
FIRST_PAUSE = timedelta(minutes=1)


def months_tag(first: str, last: str) -> dict[str, str]:
    """Run tags that select a range of monthly partitions (keys ``YYYY-MM-01``)."""
    return {RANGE_START: first, RANGE_END: last}


def every_month(contract: Contract) -> dict[str, str]:
    """Run tags for all months there are: a run of them scores what is pending and nothing else."""
    first, last = first_and_last(contract)
    return months_tag(first.isoformat(), last.isoformat())


def forget_dead_runs(instance: dg.DagsterInstance, *, dead: str | None = None) -> None:
    """Mark runs of commands as failed whose process was killed, and free their places among runs and in the pool.

    Those of the dataset ``dead`` are, whatever stands under their number now; of another the process must be gone, from
    this machine.
    """
    import psutil

    unfinished = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
    for run in instance.get_runs(unfinished):
        pid = run.tags.get(PROCESS)
        of_dead = dead is not None and run.tags.get(DATASET_TAG) == dead
        is_of_here = run.tags.get(HOST) == socket.gethostname()
        if pid and (of_dead or (is_of_here and not psutil.pid_exists(int(pid)))):
            instance.report_run_failed(run, "the process of this run was killed")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dg.schedule(
    job=score_job,
    cron_schedule="0 6 1 * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="On the first of the month, score the month that has closed.",
)
def score_monthly(context: dg.ScheduleEvaluationContext, housing: Housing) -> dg.RunRequest | dg.SkipReason:
    now = context.scheduled_execution_time or datetime.now(UTC)
    key = add_months(now.date(), -1).isoformat()
    if key not in scoring_months(housing.contract).get_partition_keys():
        return dg.SkipReason(f"{housing.settings.dataset} has no month {key[:7]} that could be scored")
    return dg.RunRequest(run_key=key, partition_key=key, tags={DATASET_TAG: housing.settings.dataset})


@dg.sensor(
    job=land_job,
    minimum_interval_seconds=15 * 60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Every 15 minutes, start the job `land` once for each change of the landing folder or the contract.",
)
def landing_sensor(context: dg.SensorEvaluationContext, housing: Housing) -> Iterator[dg.RunRequest | dg.SkipReason]:
    # no command may come that would do it, and until then they take up the places of others
    forget_dead_runs(context.instance)
    state = landing_state(housing.settings)
    # a file that was moved back from quarantine looks as it did before; the limits that now let it in do not
    seen = _digest("\n".join([*state, housing.contract.model_dump_json()]))
    if seen == (context.cursor or "").partition(" ")[0]:
        yield dg.SkipReason("nothing new has landed" if state else f"no files in {housing.settings.landing}")
        return
    # of all that was seen before, too: the daemon starts nothing for a key that it knows
    key = _digest(f"{context.cursor} {seen}")
    if state:
        yield dg.RunRequest(run_key=key, tags={DATASET_TAG: housing.settings.dataset})
    else:
        yield dg.SkipReason(f"no files in {housing.settings.landing}")
    context.update_cursor(f"{seen} {key}")


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    request_job=score_job,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="After files landed, a version was trained or assets were materialised by hand: score what is pending, "
    "judge, promote, publish.",
)
def follow_up(context: dg.RunStatusSensorContext, housing: Housing) -> dg.RunRequest | dg.SkipReason:
    dataset, done = housing.settings.dataset, context.dagster_run
    # Dagster gives assets that are materialised or backfilled without a job a job of its own, which no list can name
    by_hand = done.job_name == IMPLICIT_JOB and (done.asset_selection or frozenset()) - ENDS
    if not (by_hand or done.job_name in FOLLOWED):
        return dg.SkipReason(f"nothing follows run {done.run_id[:8]} of {done.job_name}")
    # a run started by hand in the UI has no tag: it is of the dataset that the UI shows
    if (other := done.tags.get(DATASET_TAG, dataset)) != dataset:
        return dg.SkipReason(f"run {done.run_id[:8]} is of {other}")
    return dg.RunRequest(
        run_key=f"after {done.run_id}",
        tags={**every_month(housing.contract), DATASET_TAG: dataset, "housing/after": done.run_id},
    )


@dg.sensor(
    job=score_job,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A champion promoted while months were scored has no reasons yet: score again, once for each champion.",
)
def newcomer_sensor(context: dg.SensorEvaluationContext, housing: Housing) -> dg.RunRequest | dg.SkipReason:
    dataset = housing.settings.dataset
    if not (version := published_newcomer(housing.settings)):
        return dg.SkipReason("the champion's predictions are explained")
    return dg.RunRequest(
        run_key=f"{dataset} {version} explained", tags={**every_month(housing.contract), DATASET_TAG: dataset}
    )


@dg.sensor(
    jobs=[land_job, score_job],
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts `land` or `score` again when its last run died, up to three runs in a row.",
)
def again_sensor(context: dg.SensorEvaluationContext, housing: Housing) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """What died was loading, scoring or publishing something that nothing else will ask for."""
    of_all = {DATASET_TAG: housing.settings.dataset}
    waits = []
    for job, tags in ((land_job, of_all), (score_job, of_all | every_month(housing.contract))):
        runs = context.instance.get_runs(dg.RunsFilter(job_name=job.name, tags=of_all), limit=LOOKED_AT)
        # of a command that failed, who typed it knows; it must not keep what nobody typed from being tried again
        tried = (run for run in runs if not (run.status in DIED and COMMAND in run.tags))
        died = list(takewhile(lambda run: run.status in DIED, tried))
        if not died or len(died) >= MOST_RUNS:
            waits.append(f"{len(died)} of the newest runs of {job.name} died")
        elif not _is_time(died, context):
            waits.append(f"{len(died)} of the newest runs of {job.name} died; the next one waits")
        else:
            yield dg.RunRequest(run_key=f"again after {died[0].run_id}", job_name=job.name, tags=tags)
    # Dagster takes requests or one reason
    if len(waits) == 2:
        yield dg.SkipReason("; ".join(waits))


@dg.sensor(
    jobs=[retrain_job, monitor_job],
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts one training for each decision `retrain`; again, a bounded number of times, when its run died.",
)
def retrain_sensor(context: dg.SensorEvaluationContext, housing: Housing) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """An edge, not a level: the run key is the decision and the number of runs that died for it."""
    decision = published_decision(housing.settings)
    if decision is None or decision["decision"] != "retrain":
        yield dg.SkipReason(f"nothing to do: {decision['decision'] if decision else 'no month was judged yet'}")
        return
    name = decision["decision_id"]
    runs = context.instance.get_runs(dg.RunsFilter(tags={DECISION: f"{housing.settings.dataset} {name}"}))
    died = [run for run in runs if run.status in DIED]
    if len(runs) > len(died):
        yield dg.SkipReason(f"a training for {name} runs, has ended well, or was ended by somebody")
        return
    most = housing.contract.retraining.max_attempts
    if len(died) >= most:
        # the attempts stand in the warehouse; judging again turns the decision into needs_human
        yield dg.RunRequest(
            run_key=f"{housing.settings.dataset} {name} gave up",
            job_name=monitor_job.name,
            tags={DATASET_TAG: housing.settings.dataset},
        )
        return
    if died and not _is_time(died, context):
        yield dg.SkipReason(f"{len(died)} of {most} trainings for {name} died; the next one waits")
        return
    yield retrain_request(housing.settings.dataset, decision, attempt=len(died) + 1)


def retrain_request(dataset: str, decision: dict[str, Any], attempt: int) -> dg.RunRequest:
    """The run of a decision, with its reasons as tags."""
    config = {"through": f"{decision['month']:%Y-%m}", "decision_id": decision["decision_id"], "attempt": attempt}
    return dg.RunRequest(
        run_key=f"{dataset} {decision['decision_id']} #{attempt}",
        job_name=retrain_job.name,
        run_config={"ops": {"training__model_versions": {"config": config}}},
        tags={
            DATASET_TAG: dataset,
            DECISION: f"{dataset} {decision['decision_id']}",
            REASONS: ", ".join(decision["reasons"]),
            "housing/mdape_pct": f"{decision['mdape_pct']:.2f}",
            "housing/new_labels": str(decision["new_labels"]),
        },
    )


def _is_time(died: list[dg.DagsterRun], context: dg.SensorEvaluationContext) -> bool:
    """One pause after the first death, two after the second, and so on doubling."""
    records = context.instance.get_run_records(dg.RunsFilter(run_ids=[run.run_id for run in died]))
    last = max(record.update_timestamp for record in records)
    return datetime.now(UTC) - last >= FIRST_PAUSE * 2 ** (len(died) - 1)
