"""Training as an asset: train, evaluate, gate, register. How that is done stands in ``ml/``."""

from typing import Any

import dagster as dg

from dagster_project.pictures import picture
from dagster_project.progress import tasks
from dagster_project.resources import POOL, Housing
from dagster_project.training.attempts import attempt
from ml.params import DEFAULT_PROFILE
from ml.params import load as load_params
from ml.registry import ModelVersion, run_file, train_and_register
from ml.settings import Settings

GATE = "gate"


class TrainingConfig(dg.Config):
    """What the launchpad asks for."""

    through: str = ""
    """Last month of the evaluation window, YYYY-MM; empty: the contract's, or the champion's where that is later."""
    force: bool = False
    """Train again although a version of the same data and parameters stands."""
    profile: str = DEFAULT_PROFILE
    """Parameter profile of ml/params.yml."""
    decision_id: str = ""
    """Row of monitoring.retrain_decisions that asked for this training."""
    attempt: int = 1
    """Which run for that decision this is."""


@dg.asset(
    key=["training", "model_versions"],
    group_name="training",
    deps=[dg.AssetKey(["training", "training_dataset"])],
    check_specs=[
        dg.AssetCheckSpec(GATE, asset=["training", "model_versions"], description="Is the version good enough?")
    ],
    pool=POOL,
    kinds={"xgboost", "mlflow"},
    description="A registered model version with its bundle. It becomes champion when it passes the contract's gate.",
)
def model_versions(context: dg.AssetExecutionContext, housing: Housing, config: TrainingConfig) -> dg.MaterializeResult:
    with (
        housing.write(context) as connection,
        attempt(connection, config.decision_id, config.attempt, context.run_id),
    ):
        outcome = train_and_register(
            connection,
            housing.settings,
            housing.contract,
            through=config.through or None,
            force=config.force,
            params=load_params(housing.settings.dataset, profile=config.profile),
            actor=f"run {context.run_id[:8]}",
            progress=tasks(context),
        )
    version = outcome.version
    context.log.info(f"{version.model_version} {'trained' if outcome.trained else 'stood already'}: {version.status}")
    passed = version.status != "rejected"
    return dg.MaterializeResult(
        metadata={**_numbers(version), **_pictures(housing.settings, version)},
        check_results=[
            dg.AssetCheckResult(
                passed=passed,
                check_name=GATE,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"version": version.model_version, "reasons": list(version.reasons or [])},
            )
        ],
    )


def _numbers(version: ModelVersion) -> dict[str, Any]:
    values = {
        "model_version": version.model_version,
        "status": version.status,
        "trained_through": str(version.trained_through),
        "dagster/row_count": version.n_train,
        "eval_mae": version.eval_mae,
        "eval_r2": version.eval_r2,
        "eval_mdape_pct": version.eval_mdape_pct,
        "best_iteration": version.best_iteration,
        "data_fingerprint": version.data_fingerprint,
        "mlflow_run_id": version.run_id,
    }
    return {name: value for name, value in values.items() if value is not None}


def _pictures(settings: Settings, version: ModelVersion) -> dict[str, dg.MarkdownMetadataValue]:
    """The run's plots."""
    return {
        name: picture(name, run_file(settings, version, f"{name}.png").read_bytes(), "image/png")
        for name in ("importance", "learning_curve")
    }
