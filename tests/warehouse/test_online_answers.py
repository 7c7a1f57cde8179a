"""What the API answered, on a finished home: measured, and no evidence of the model's health."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ml.warehouse import connect
from tests.built import built_home
from tests.conftest import Home


def test_answers_for_homes_that_were_learned_from_are_measured_apart(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shutil.copytree(built_home(tmp_path_factory).settings.home / "warehouse", tmp_path / "home" / "warehouse")
    home = Home(tmp_path / "home", "housets")

    tables = [
        *(f"monitoring.{name}" for name in (
            "accuracy", "accuracy_by_month", "accuracy_by_segment", "ratio_study", "interval_coverage", "feature_drift",
            "prediction_drift", "drift_by_month", "error_estimates", "served_months", "checks", "retrain_decisions",
        )),
        "predictions.interval_calibration",
    ]  # fmt: skip

    def measured(table: str) -> list[dict[str, Any]]:
        rows = home.query(f"select * from {table} order by all").to_pylist()
        # the sample of training rows leaves out what was asked since
        return [row for row in rows if row.get("split") not in {"online", "train"}]

    before = {table: measured(table) for table in tables}
    with connect(home.settings) as connection:
        # answers that only a model that knew the price can give, for months that it learned from
        connection.execute(
            """
            insert into predictions.predictions by name
            select observation_id, 'v1' as model_version, 'model' as kind, 'to_score' as split, observed_on, month,
                area, locality, price * 1.0001 as predicted_price, now()::timestamp as scored_at, 'asked' as run_id,
                'champion' as role, 'online' as mode
            from features.features
            where split = 'train' and is_price_valid
            order by observation_id limit 1000
            """
        )
    home.dbt("build", "--exclude-resource-type", "unit_test", "--select", "predictions", "monitoring")
    for table in tables:
        assert measured(table) == before[table], table
    online = "from monitoring.accuracy where split = 'online' and population = 'valid' and model_version = 'v1'"
    assert home.query(f"select n, mdape_pct {online}").to_pylist() == [{"n": 1000, "mdape_pct": pytest.approx(0.01)}]
    covered = "select n, coverage_pct from monitoring.interval_coverage where split = 'online' and segment_type = 'all'"
    assert {(row["n"], row["coverage_pct"]) for row in home.query(covered).to_pylist()} <= {(1000, 100.0)}
