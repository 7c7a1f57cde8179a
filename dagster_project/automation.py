"""When things run by themselves: jobs, the monthly scoring schedule and the landing sensor.

What a job does stands in the assets. Both are switched on as shipped.
"""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from dagster_project.raw.landing import landing_state
from dagster_project.resources import Housing
from ml.contract import add_months

PREDICTIONS = dg.AssetKey(["predictions", "predictions"])
MODEL_VERSIONS = dg.AssetKey(["training", "model_versions"])

#: What is made month by month, of the champion.
SCORED = dg.AssetSelection.assets(
    PREDICTIONS, dg.AssetKey(["predictions", "explanations"]), dg.AssetKey(["predictions", "comparables"])
)

#: Made by hand only: hours of fitting that change no model.
EXPERIMENTS = dg.AssetSelection.assets(
    dg.AssetKey(["training", "model_selection"]), dg.AssetKey(["training", "tuning_trials"])
)

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
JOBS = [land_job, train_job, score_job, monitor_job, compare_job, tune_job]


def months_tag(first: str, last: str) -> dict[str, str]:
    """Run tags that select a range of monthly partitions (keys ``YYYY-MM-01``)."""
    return {RANGE_START: first, RANGE_END: last}


@dg.schedule(
    job=score_job,
    cron_schedule="0 6 1 * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="On the first of the month, score the month that has closed.",
)
def score_monthly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    now = context.scheduled_execution_time or datetime.now(UTC)
    key = add_months(now.date(), -1).isoformat()
    return dg.RunRequest(run_key=key, partition_key=key)


@dg.sensor(
    job=land_job,
    minimum_interval_seconds=15 * 60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Every 15 minutes, start the job `land` once for each change of the landing folder.",
)
def landing_sensor(context: dg.SensorEvaluationContext, housing: Housing) -> Iterator[dg.RunRequest | dg.SkipReason]:
    state = landing_state(housing.settings)
    listing = hashlib.sha256("\n".join(state).encode()).hexdigest()[:32]
    if not state:
        yield dg.SkipReason(f"no files in {housing.settings.landing}")
    elif listing == context.cursor:
        yield dg.SkipReason("nothing new has landed")
    else:
        # the run key makes the request idempotent, should the cursor be lost
        yield dg.RunRequest(run_key=listing)
        context.update_cursor(listing)
