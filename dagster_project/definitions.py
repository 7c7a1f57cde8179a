"""Assembles what Dagster loads. Nothing is decided here.

Assets stand in the folder of their layer, jobs and their timing in ``automation.py``.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from dagster_project import automation
from dagster_project.alerting import alert_sensor
from dagster_project.monitoring.checks import monitoring_checks
from dagster_project.monitoring.promotion import promotion
from dagster_project.predictions.assets import prediction_assets
from dagster_project.predictions.explanations import explanation_assets
from dagster_project.published.assets import report, snapshot
from dagster_project.raw.assets import raw_assets
from dagster_project.resources import Housing, prepare_environment
from dagster_project.training.assets import model_versions
from dagster_project.training.experiments import model_selection, tuning_trials
from dagster_project.transform.assets import transform_assets
from ml.alerts import AlertSettings
from ml.contract import load
from ml.settings import Settings


def build_defs(settings: Settings | None = None, **resources: Any) -> dg.Definitions:
    """Fresh Definitions of one dataset; ``resources`` replaces any of the defaults."""
    settings = settings or Settings()
    contract = load(settings.dataset)
    AlertSettings()  # refused here rather than when something has failed
    prepare_environment(settings)
    return dg.Definitions(
        assets=[
            raw_assets(contract),
            transform_assets(settings),
            model_versions,
            promotion,
            model_selection,
            tuning_trials,
            prediction_assets(contract),
            explanation_assets(contract),
            snapshot,
            report,
        ],
        asset_checks=[monitoring_checks],
        jobs=automation.JOBS,
        schedules=[automation.score_monthly],
        sensors=[
            automation.landing_sensor,
            automation.follow_up,
            automation.newcomer_sensor,
            automation.retrain_sensor,
            automation.again_sensor,
            alert_sensor,
        ],
        resources={
            "housing": Housing(home=str(settings.home), dataset=settings.dataset),
            **resources,
        },
        # imports dominate a run, so all steps share one process
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    return build_defs()
