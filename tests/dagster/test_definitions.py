"""What Dagster loads: one graph, a layer is one word everywhere, automation switched on and idempotent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import cast

import dagster as dg
import pytest

from dagster_project.alerting import alert_sensor
from dagster_project.automation import (
    again_sensor,
    follow_up,
    landing_sensor,
    newcomer_sensor,
    retrain_sensor,
    score_monthly,
)
from dagster_project.definitions import build_defs
from dagster_project.resources import Housing
from dagster_project.transform import project
from dagster_project.transform.dbt import ensure_manifest
from dagster_project.transform.project import EVIDENCE, HISTORY, needs_full_refresh, remember_shape
from ml.contract import available
from ml.settings import Settings
from tests import factories

#: Layers from top to bottom; a layer reads only from itself and layers above it.
LAYERS = ["raw", "staging", "intermediate", "features", "training", "predictions", "monitoring", "published"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("definitions"), dataset="hdb")


@pytest.fixture(scope="module")
def definitions(settings: Settings) -> dg.Definitions:
    return build_defs(settings)


def test_key_and_group_of_every_asset_are_its_layer(definitions: dg.Definitions) -> None:
    specs = definitions.resolve_all_asset_specs()
    assert len(specs) > 20
    for spec in specs:
        assert spec.key.path[0] in LAYERS
        assert spec.group_name == spec.key.path[0], spec.key


def test_every_check_says_what_it_holds_to_be_true(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    said = {key.name: graph.get_check_spec(key).description for key in graph.asset_check_keys}
    assert len(said) > 100
    assert not [name for name, description in said.items() if not description]
    assert said["unique_key_predictions_matched_observation_id__model_version"] == (
        "No two rows share their observation_id and model_version; none of it is null."
    )
    assert said["accepted_range_encodings_0__1__frequency"] == "frequency is null or at least 0 and at most 1."
    assert said["verdicts_follow_the_limits_shown"] == (
        "A value that warns or fails lies outside the limits that stand beside it, any other within."
    )


def test_a_layer_reads_only_from_layers_above_it(definitions: dg.Definitions) -> None:
    for spec in definitions.resolve_all_asset_specs():
        for dependency in spec.deps:
            above, below = dependency.asset_key.path[0], spec.key.path[0]
            assert LAYERS.index(above) <= LAYERS.index(below), f"{spec.key} reads {dependency.asset_key}"


def test_the_graph_is_connected_from_landed_rows_to_the_snapshot(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    upstream = graph.upstream_key_iterator(dg.AssetKey(["published", "snapshot"]))
    assert {("raw", "observations"), ("training", "model_versions"), ("features", "features")} <= {
        tuple(key.path) for key in upstream
    }


def test_a_warehouse_that_was_never_built_to_the_end_is_rebuilt(tmp_path: Path) -> None:
    fresh = Settings(home=tmp_path, dataset="hdb")
    assert needs_full_refresh(fresh), "a first build that failed has left tables of the wrong shape"
    fresh.warehouse.parent.mkdir(parents=True)
    remember_shape(fresh, HISTORY | {"training"})
    assert not needs_full_refresh(fresh, HISTORY)
    assert needs_full_refresh(fresh, EVIDENCE), "what follows predictions is built after them, in a step of its own"
    remember_shape(fresh, EVIDENCE | {"training"})
    assert not needs_full_refresh(fresh, HISTORY | EVIDENCE)


def test_what_follows_predictions_is_rebuilt_when_its_own_models_or_any_macro_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = Settings(home=tmp_path, dataset="hdb")
    built.warehouse.parent.mkdir(parents=True)
    remember_shape(built, HISTORY | EVIDENCE)
    shutil.copytree(project.PROJECT, tmp_path / "warehouse_code", ignore=shutil.ignore_patterns("target"))
    monkeypatch.setattr(project, "PROJECT", tmp_path / "warehouse_code")
    monkeypatch.setattr(project, "PROJECT_ROOT", tmp_path)

    def rebuilt(file: str) -> list[bool]:
        path = tmp_path / "warehouse_code" / file
        before = path.read_text()
        remember_shape(built, HISTORY | EVIDENCE)
        path.write_text(before + "\n")
        return [needs_full_refresh(built, half) for half in (HISTORY, EVIDENCE)]

    assert rebuilt("models/predictions/interval_calibration.sql") == [False, True]
    assert rebuilt("models/training/training_profile.sql") == [False, True]
    assert rebuilt("models/features/features_as_of.sql") == [True, True]
    assert rebuilt("macros/metrics.sql") == [True, True]
    assert rebuilt("models/monitoring/monitoring.yml") == [False, False]


def test_every_dbt_test_and_every_expectation_is_an_asset_check(
    definitions: dg.Definitions, settings: Settings
) -> None:
    checks = {key.name for key in definitions.resolve_asset_graph().asset_check_keys}
    manifest = json.loads(ensure_manifest(settings).read_text())
    # tests of another dataset's disabled models stand in the manifest, too
    enabled = [n for n in manifest["nodes"].values() if n["resource_type"] == "test"]
    enabled = [n for n in enabled if n.get("attached_node") in manifest["nodes"]]
    assert len(enabled) >= 15
    missing = [n["name"] for n in enabled if n["name"] not in checks]
    assert not missing
    assert {"rows", "missing_key", "unparsable__floor_area_sqm", "gate", "duplicate_keys"} <= checks


@pytest.mark.parametrize("dataset", sorted({*available()} - {"hdb"}))
def test_every_other_shipped_dataset_loads(dataset: str, tmp_path: Path) -> None:
    loaded = build_defs(Settings(home=tmp_path, dataset=dataset))
    assert {job.name for job in loaded.resolve_all_job_defs()} >= {"land", "train", "score", "monitor"}


def test_schedule_and_sensor_run_as_shipped() -> None:
    assert score_monthly.default_status == dg.DefaultScheduleStatus.RUNNING
    for sensor in (landing_sensor, follow_up, newcomer_sensor, retrain_sensor, again_sensor, alert_sensor):
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert landing_sensor.minimum_interval_seconds == 15 * 60


def test_the_first_of_the_month_scores_the_month_that_closed() -> None:
    for when, key in ((datetime(2023, 7, 1, 6), "2023-06-01"), (datetime(2024, 1, 1, 6), "2023-12-01")):
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_schedule_context(
                instance=instance, scheduled_execution_time=when, resources={"housing": Housing(dataset="hdb")}
            )
            request = score_monthly(context)
        assert isinstance(request, dg.RunRequest)
        assert request.partition_key == request.run_key == key
        assert request.tags["housing/dataset"] == "hdb"


def test_the_landing_sensor_asks_for_one_run_for_each_change(tmp_path: Path) -> None:
    housing = Housing(home=str(tmp_path), dataset="hdb")
    housing.settings.landing.mkdir(parents=True)
    cursor: str | None = None

    def tick() -> list[dg.RunRequest]:
        nonlocal cursor
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"housing": housing})
            found = list(cast(Iterable[object], landing_sensor(context)))
            cursor = context.cursor
        return [r for r in found if isinstance(r, dg.RunRequest)]

    assert tick() == []
    factories.write_csv(factories.hdb_rows("2023-01", months=1, per_month=5), housing.settings.landing / "a.csv")
    assert len(tick()) == 1
    assert sum(len(tick()) for _ in range(50)) == 0
    factories.write_csv(factories.hdb_rows("2023-02", months=1, per_month=5), housing.settings.landing / "b.csv")
    assert len(tick()) == 1
