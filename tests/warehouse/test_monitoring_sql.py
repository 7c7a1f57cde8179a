"""The real prediction and monitoring models, run by dbt over a hand-built warehouse, against numpy and known answers.

One dbt build serves all tests; each model version in it is one case. Statuses and edge cases are dbt unit tests beside
the models; the formulas by themselves are tests/unit/test_evaluate.py.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from ml.evaluate import accuracy, ratio_statistics
from ml.warehouse import OWNED_TABLES, connect
from tests.conftest import Home, upstream

#: Five sales whose statistics are computed by hand: two in month 1, three in month 2.
BY_HAND = """
insert into features.features by name
select 1 as _batch, 'hand' || price as observation_id, month, 'Hand' as area, price, true as is_price_valid,
    'holdout' as split, price as persistence_price
from (values (100, date '2022-01-01'), (200, date '2022-01-01'), (300, date '2022-02-01'), (400, date '2022-02-01'),
    (500, date '2022-02-01')) as t (price, month);
insert into predictions.predictions by name
select observation_id, 'v1' as model_version, 'model' as kind, split, month, area, predicted as predicted_price,
    '2022-03-01' as scored_at, 'r1' as run_id
from (values (100, 110), (200, 190), (300, 330), (400, 360), (500, 450)) as t (actual, predicted)
inner join features.features on price = actual;
insert into training.model_versions (model_version, training_median_price) values ('v1', 250), ('v2', 300000);
insert into raw.files (file, rows, status, batch, loaded_at) values
    ('hand.csv', 7, 'loaded', 1, '2022-03-05'), ('random.csv', 2000, 'loaded', 2, '2022-03-05');
insert into raw.observations select 'hand.csv', unnest(range(1, 8)), '2022-03-05', 1;
insert into raw.observations select 'random.csv', unnest(range(1, 2001)), '2022-03-05', 2;
insert into intermediate.int_observations_rejected values
    ('hand.csv', 6, 1, 'x', ['price:missing']), ('hand.csv', 7, 1, 'hand100', ['superseded']);
"""

#: Drawn by _draw: 2,000 sales in 7 areas and 14 months, 5 % of them invalid, prices rounded so that many are equal.
RANDOM = """
insert into features.features by name
select 2 as _batch, 'random' || i as observation_id, month, area, actual as price, is_valid as is_price_valid,
    'eval' as split
from drawn;
insert into predictions.predictions by name
select 'random' || i as observation_id, 'v2' as model_version, 'model' as kind, 'eval' as split, month, area,
    predicted as predicted_price, '2022-03-01' as scored_at, 'r2' as run_id
from drawn;
"""

ACCURACY = ["n", "mae", "rmse", "r2", "mape_pct", "mdape_pct", "within_5_pct", "within_10_pct", "within_20_pct"]
RATIO = ["n", "median_ratio", "mean_ratio", "weighted_mean_ratio", "cod", "prd", "prb", "prb_se", "mki"]


def _draw(connection: duckdb.DuckDBPyConnection) -> None:
    rng = np.random.default_rng(7)
    n = 2000
    actual = np.round(np.exp(rng.normal(12.5, 0.5, n)), -3)
    connection.register(
        "arrays",
        {
            "i": np.arange(n),
            "area": rng.integers(0, 7, n),
            "month": rng.integers(0, 14, n),
            "actual": actual,
            "predicted": actual**0.95 * np.exp(rng.normal(0.6, 0.15, n)),
            "is_valid": rng.random(n) < 0.95,
        },
    )
    connection.execute(
        """
        create temp table drawn as
        select i, 'Area ' || area as area, cast(date '2020-01-01' + to_months(month::int) as date) as month,
            actual, predicted, is_valid
        from arrays
        """
    )


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("monitoring"), "housets")
    with connect(home.settings) as connection:
        connection.execute(OWNED_TABLES + upstream("housets") + BY_HAND)
        _draw(connection)
        connection.execute(RANDOM)
    seeds = ("monitoring_thresholds", "monitoring_checks", "confidence_grades")
    home.dbt("build", "--select", *seeds, "training_profile", "predictions", "monitoring")
    return home


def _ask(home: Home, sql: str) -> list[dict[str, Any]]:
    return home.query(sql).to_pylist()


def _prices(home: Home, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Actual and predicted prices of the group that a monitoring row is about."""
    segment_type, segment = row.get("segment_type", "all"), row.get("segment", "all")
    if "month" in row:
        segment_type, segment = "month", str(row["month"])
    within = "true" if segment_type == "all" else f"cast({segment_type} as varchar) = '{segment}'"
    found = home.query(
        f"""
        select actual_price, predicted_price from predictions.predictions_matched
        where split = '{row["split"]}' and model_version = '{row["model_version"]}' and {within}
            and (is_price_valid or '{row["population"]}' = 'all')
        """
    )
    return found["actual_price"].to_numpy(), found["predicted_price"].to_numpy()


def _assert_equal(row: dict[str, Any], expected: dict[str, float], names: list[str]) -> None:
    for name in names:
        value = math.nan if row[name] is None else row[name]
        assert value == pytest.approx(expected[name], rel=1e-9, abs=1e-12, nan_ok=True), (name, row)


# a slip in one grouping set (a lost population, a doubled row) shows only where every group is compared
@pytest.mark.parametrize(
    ("table", "groups"), [("accuracy", 2), ("accuracy_by_month", 2 * 14), ("accuracy_by_segment", 2 * (7 + 10))]
)
def test_accuracy_in_sql_equals_numpy_for_every_group_of_random_rows(warehouse: Home, table: str, groups: int) -> None:
    rows = _ask(warehouse, f"from monitoring.{table} where model_version = 'v2'")
    assert len(rows) == groups
    for row in rows:
        _assert_equal(row, accuracy(*_prices(warehouse, row)), [*ACCURACY, "median_ratio"])


def test_the_ratio_study_in_sql_equals_numpy_for_every_group_of_random_rows(
    warehouse: Home,
) -> None:
    rows = _ask(warehouse, "from monitoring.ratio_study where model_version = 'v2'")
    assert len(rows) == 2 + 7 + 14 + 10
    for row in rows:
        names = [name for name in RATIO if row["segment_type"] != "price_decile" or name in RATIO[:5]]
        _assert_equal(row, ratio_statistics(*_prices(warehouse, row)), names)
        assert row["status"] != "insufficient_data"


def test_five_sales_give_the_answers_computed_by_hand(warehouse: Home) -> None:
    (row,) = _ask(
        warehouse,
        "from monitoring.ratio_study where model_version = 'v1' and segment_type = 'all' and population = 'valid'",
    )
    expected = {"median_ratio": 0.95, "cod": 8.421053, "prd": 1.03125, "prb": -0.078264, "mki": 0.885417}
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=5e-7)
    # five rows are measured, but no verdict stands on them
    assert (row["n"], row["status"]) == (5, "insufficient_data")


def test_months_of_five_sales_give_the_answers_computed_by_hand(warehouse: Home) -> None:
    rows = _ask(
        warehouse, "from monitoring.accuracy_by_month where model_version = 'v1' and population = 'all' order by month"
    )
    # month 1: errors 10 and 10 of 100 and 200; month 2: 30, 40, 50 of 300, 400, 500, variance 20000 / 3
    _assert_equal(rows[0], {"n": 2, "mae": 10, "rmse": 10, "r2": 1 - 100 / 2500, "mape_pct": 7.5, "mdape_pct": 7.5,
                            "within_5_pct": 50, "within_10_pct": 100, "within_20_pct": 100}, ACCURACY)  # fmt: skip
    _assert_equal(rows[1], {"n": 3, "mae": 40, "rmse": math.sqrt(5000 / 3), "r2": 0.75, "mape_pct": 10, "mdape_pct": 10,
                            "within_5_pct": 0, "within_10_pct": 100, "within_20_pct": 100}, ACCURACY)  # fmt: skip


def test_baselines_are_measured_on_the_same_rows_as_the_model(warehouse: Home) -> None:
    rows = _ask(
        warehouse,
        "select model_version, kind, n, mae from monitoring.accuracy where population = 'all' and split = 'holdout'",
    )
    assert {(r["model_version"], r["kind"], r["n"], r["mae"]) for r in rows} == {
        ("v1", "model", 5, 28.0),
        ("median_v1", "baseline", 5, 130.0),
        ("persistence", "baseline", 5, 0.0),
    }


def test_price_deciles_hold_a_tenth_of_each_month_and_equal_prices_share_one(
    warehouse: Home,
) -> None:
    (found,) = _ask(
        warehouse,
        """
        select max(deciles) as deciles_of_a_price, min(decile) as lowest, max(decile) as highest
        from (
            select count(distinct price_decile) as deciles, min(price_decile) as decile
            from predictions.actuals group by month, actual_price
        )
        """,
    )
    assert found == {"deciles_of_a_price": 1, "lowest": 1, "highest": 10}
    (largest,) = _ask(
        warehouse,
        "select max(n) as n from (select count(*) as n from predictions.actuals where observation_id like 'random%'"
        " group by month, price_decile)",
    )
    assert largest["n"] <= 30  # about 143 sales a month


def test_every_landed_row_is_accounted_for_and_rejections_show_an_example(
    warehouse: Home,
) -> None:
    assert _ask(
        warehouse, "select file, landed, accepted_eval, accepted_holdout, rejected, difference, status"
        " from monitoring.reconciliation order by batch",
    ) == [
        {"file": "hand.csv", "landed": 7, "accepted_eval": 0, "accepted_holdout": 5, "rejected": 2, "difference": 0,
         "status": "pass"},
        {"file": "random.csv", "landed": 2000, "accepted_eval": 2000, "accepted_holdout": 0, "rejected": 0,
         "difference": 0, "status": "pass"},
    ]  # fmt: skip
    assert _ask(warehouse, "from monitoring.rejections_by_reason where reason = 'superseded'") == [
        {"reason": "superseded", "n": 1, "share_pct": pytest.approx(100 / 2007), "example_file": "hand.csv",
         "example_row": 7}
    ]  # fmt: skip


def test_confidence_intervals_are_those_of_a_bootstrap_of_the_rows(warehouse: Home) -> None:
    rows = _ask(warehouse, "from monitoring.ratio_study where model_version = 'v2' and segment_type in ('all', 'area')")
    rng = np.random.default_rng(5)
    for row in rows:
        actual, predicted = _prices(warehouse, row)
        draws = rng.integers(0, len(actual), (400, len(actual)))
        found = [ratio_statistics(actual[d], predicted[d]) for d in draws]
        for name in ("cod", "prd"):
            expected = np.quantile([f[name] for f in found], [0.025, 0.975])
            width = row[f"{name}_upper"] - row[f"{name}_lower"]
            assert row[f"{name}_lower"] < row[name] < row[f"{name}_upper"], row
            assert width == pytest.approx(expected[1] - expected[0], rel=0.35), (name, row)
        assert row["prb_upper"] - row["prb_lower"] == pytest.approx(2 * 1.96 * row["prb_se"])


def test_thresholds_cover_every_judged_metric_with_source_and_reason(warehouse: Home) -> None:
    rows = _ask(warehouse, "from monitoring.monitoring_thresholds")
    judged = {
        "median_ratio", "cod", "prd", "prb", "mki", "mdape_pct", "coverage_excess_pct", "cod_to_persistence",
        "psi", "js", "ks", "wasserstein", "missing_pct", "unseen_pct", "drifted_share_pct",
        "error_increase_pct", "level_error_pct", "unpriced_pct",
    }  # fmt: skip
    assert {(r["metric"], r["severity"]) for r in rows} == {
        ("n", "insufficient_data"),
        ("false_alarms_pct", "warn"),
        ("new_labels_pct", "fail"),
        *((metric, severity) for metric in judged for severity in ("warn", "fail")),
    }
    assert all(r["source"] and r["rationale"] for r in rows)


def test_only_series_whose_rows_changed_are_measured_again(warehouse: Home, tmp_path: Path) -> None:
    again = Home(tmp_path, "housets")
    again.settings.warehouse.parent.mkdir(parents=True)
    shutil.copy(warehouse.settings.warehouse, again.settings.warehouse)
    with connect(again.settings) as connection:
        # a mark that a new measurement loses; then one month is scored again and one version goes
        connection.execute("update monitoring.int_error_groups set mae = -1")
        connection.execute("update monitoring.int_ratio_statistics set cod = -1")
        connection.execute(
            "update predictions.predictions set predicted_price = predicted_price * 1.01"
            " where model_version = 'v2' and month = '2020-03-01'"
        )
        connection.execute("delete from predictions.predictions where model_version = 'v1'")
    again.dbt("run", "--select", "predictions", "monitoring")

    kept = _ask(again, "select distinct model_version from monitoring.int_error_groups where mae = -1")
    assert {row["model_version"] for row in kept} == {"median_v2", "persistence"}
    kept = _ask(again, "select distinct model_version from monitoring.int_ratio_statistics where cod = -1")
    assert {row["model_version"] for row in kept} == {"median_v2", "persistence"}
    rows = _ask(again, "from monitoring.ratio_study where model_version = 'v2'")
    assert rows
    for row in rows:
        _assert_equal(row, ratio_statistics(*_prices(again, row)), RATIO[:5])
    for row in _ask(again, "from monitoring.accuracy_by_month where model_version = 'v2'"):
        _assert_equal(row, accuracy(*_prices(again, row)), ACCURACY)


def test_a_series_is_measured_again_when_two_homes_swap_their_predictions(warehouse: Home, tmp_path: Path) -> None:
    again = Home(tmp_path, "housets")
    again.settings.warehouse.parent.mkdir(parents=True)
    shutil.copy(warehouse.settings.warehouse, again.settings.warehouse)
    with connect(again.settings) as connection:
        connection.execute(
            "update predictions.predictions set predicted_price = 300 - predicted_price "
            "where model_version = 'v1' and month = '2022-01-01'"
        )
    again.dbt("run", "--select", "predictions", "monitoring")
    (row,) = _ask(
        again,
        "from monitoring.accuracy_by_month where model_version = 'v1' and month = '2022-01-01' and population = 'all'",
    )
    _assert_equal(row, accuracy(*_prices(again, row)), ACCURACY)
    assert row["mae"] == pytest.approx(90), "100 and 200 were predicted as 190 and 110"


def test_importance_is_measured_again_when_recent_errors_alone_changed(warehouse: Home, tmp_path: Path) -> None:
    again = Home(tmp_path, "housets")
    again.settings.warehouse.parent.mkdir(parents=True)
    shutil.copy(warehouse.settings.warehouse, again.settings.warehouse)
    importance = "from monitoring.feature_importance_by_month order by model_version, month, feature"
    with connect(again.settings) as connection:
        connection.execute(
            """
            insert into predictions.explanations
            select observation_id, model_version, month, part.feature, part.amount, part.rank, 1
            from predictions.predictions
            cross join (values ('(price level)', 90, 0), ('size', 15, 1), ('(recent errors)', 5, 2))
                as part (feature, amount, rank)
            where model_version = 'v1'
            """
        )
    again.dbt("run", "--select", "int_feature_importance", "feature_importance_by_month")
    before = _ask(again, importance)
    with connect(again.settings) as connection:
        connection.execute(
            "update predictions.explanations set contribution = 7 "
            "where feature = '(recent errors)' and month = '2022-01-01'"
        )
    again.dbt("run", "--select", "int_feature_importance", "feature_importance_by_month")
    changed = _ask(again, importance)
    again.dbt("run", "--full-refresh", "--select", "int_feature_importance", "feature_importance_by_month")
    assert changed == _ask(again, importance)
    assert changed != before
