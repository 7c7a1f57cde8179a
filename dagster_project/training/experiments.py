"""Experiments on the folds as assets. They change no model; how they are done stands in ``ml/``."""

import dagster as dg

from dagster_project.progress import tasks
from dagster_project.resources import POOL, Housing
from ml.model_selection import compare
from ml.params import load
from ml.tune import best_so_far, tune

FOLDS = dg.AssetKey(["training", "int_fold_members"])
TRAINING_DATASET = dg.AssetKey(["training", "training_dataset"])


class TuningConfig(dg.Config):
    """What the launchpad asks for."""

    trials: int = 30
    """Trials in all, those of earlier searches counted in."""
    minutes: float = 30.0
    """No trial starts after so many minutes."""


@dg.asset(
    key=["training", "model_selection"],
    group_name="training",
    deps=[FOLDS, TRAINING_DATASET],
    pool=POOL,
    kinds={"xgboost", "scikitlearn"},
    description="Error, fit time and size of each candidate of ml/models.yml on each fold.",
)
def model_selection(context: dg.AssetExecutionContext, housing: Housing) -> dg.MaterializeResult:
    with housing.write(context) as connection:
        rows = compare(
            connection,
            housing.contract,
            load(housing.settings.dataset),
            threads=housing.settings.threads,
            progress=tasks(context),
        )
    return dg.MaterializeResult(metadata={"dagster/row_count": len(rows)})


@dg.asset(
    key=["training", "tuning_trials"],
    group_name="training",
    deps=[FOLDS, TRAINING_DATASET],
    pool=POOL,
    kinds={"xgboost", "optuna", "mlflow"},
    description="Search of XGBoost's parameters on the folds; each trial is a nested MLflow run.",
)
def tuning_trials(context: dg.AssetExecutionContext, housing: Housing, config: TuningConfig) -> dg.MaterializeResult:
    with housing.write(context) as connection:
        done = tune(
            connection,
            housing.settings,
            housing.contract,
            load(housing.settings.dataset),
            trials=config.trials,
            minutes=config.minutes,
            progress=tasks(context),
        )
    best = best_so_far(housing.settings)
    found = {"best_value": best.value, "best_params": dg.MetadataValue.json(best.params)} if best else {}
    return dg.MaterializeResult(metadata={"trials": done, **found})
