"""The real drift models, run by dbt over a hand-built warehouse of hdb's shape, against scipy and on resampled months.

One dbt build serves all tests; each model version in it is one case. All versions learned from the same rows.
"""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp, wasserstein_distance

from ml.contract import add_months, load
from ml.warehouse import OWNED_TABLES, connect
from tests.conftest import Home, upstream

FEATURES = load("hdb").features
TRAINED_THROUGH = date(2021, 12, 1)
TRAIN_ROWS, EVAL_ROWS = 12_000, 3_000
#: Resampled months without drift: rows a month by version. The nominal rate of false alarms is 5 % of the months.
NO_DRIFT = {"v30": 30, "v100": 100, "v1000": 1000}
NO_DRIFT_MONTHS = 60
SHIFT_MONTHS = 15
SELECTED = ("monitoring_thresholds", "training_profile", "prediction_profile", "+drift_by_month,monitoring")
STATISTICS = ("psi", "js", "ks", "wasserstein", "missing_pct", "unseen_pct")

Rows = dict[str, np.ndarray]


def training(rng: np.random.Generator) -> Rows:
    """Rows of the training window, the evaluation window last: every kind of distribution, then normal features."""
    n = TRAIN_ROWS
    x = {name: rng.normal(size=n) for name in FEATURES}
    kinds = [
        rng.choice([1.0, 2.0, 4.0], n, p=[0.7, 0.29, 0.01]),  # categories
        (rng.random(n) < 0.002).astype(float),  # rare one-hot
        np.full(n, 7.0),  # a constant
        np.round(rng.normal(100, 20, n)),  # ties
        np.where(rng.random(n) < 0.6, 0.0, rng.exponential(size=n)),  # many zeros
        np.where(rng.random(n) < 0.3, np.nan, rng.normal(size=n)),  # missing values
        np.full(n, np.nan),  # nothing but missing values
        rng.standard_t(2.2, n),  # heavy tails
        rng.lognormal(0, 1.5, n),  # skewed
        103.8 + 0.0001 * rng.normal(size=n),  # small against its level
        np.where(rng.random(n) < 0.95, 1.0, rng.random(n)),  # nearly constant, from above
        np.round(rng.random(n), 1),  # few fractions
    ]
    x |= dict(zip(FEATURES, kinds, strict=False))
    noise = rng.normal(size=n)
    target = rng.normal(0, 0.15, n)
    return x | {"target_offset": rng.normal(13, 0.2, n), "target": target, "residual": 0.1 * noise}


def take(rows: Rows, index: np.ndarray) -> Rows:
    return {name: values[index] for name, values in rows.items()}


def scored(rng: np.random.Generator, rows: Rows, n: int) -> Rows:
    """``n`` rows of the reference's own distribution: those that the residuals were measured on."""
    return take(rows, rng.integers(TRAIN_ROWS - EVAL_ROWS, TRAIN_ROWS, n))


def drifted(rng: np.random.Generator, rows: Rows) -> Rows:
    """A month that differs in every way at once: shifted, new categories, other missing values, ties with training."""
    x = scored(rng, rows, 700)
    names = FEATURES
    x[names[0]] = rng.choice([1.0, 2.0, 3.0, 9.0], 700)
    x[names[2]] = np.where(rng.random(700) < 0.5, 7.0, 8.0)
    x[names[3]] = x[names[3]] + 10
    x[names[5]] = np.where(rng.random(700) < 0.6, np.nan, x[names[5]])
    x[names[6]] = rng.normal(size=700)
    x[names[7]] = x[names[7]] * 2
    x[names[12]] = x[names[12]] + 1
    x[names[13]] = np.full(700, np.nan)
    x["target"] = x["target"] + 0.3
    return x


class Warehouse:
    """Collects observations and predictions as arrays, so that each table is written once."""

    def __init__(self) -> None:
        self.parts: list[pa.Table] = []
        self.count = 0

    def add(self, rows: Rows, months: np.ndarray, version: str, split: str) -> None:
        """Rows of split ``to_score`` have no price yet."""
        n = len(rows["target"])
        columns: dict[str, Any] = {name: pa.array(rows[name], from_pandas=True) for name in FEATURES}
        price = np.exp(rows["target"] + rows["target_offset"])
        columns |= {
            "observation_id": np.char.add("o", np.arange(self.count, self.count + n).astype(str)),
            "month": pa.array(months, pa.date32()),
            "price": pa.nulls(n, pa.float64()) if split == "to_score" else pa.array(price),
            "target_offset": rows["target_offset"],
            "predicted_price": price * np.exp(rows["residual"]),
            "model_version": np.full(n, version),
            "split": np.full(n, split),
        }
        self.count += n
        self.parts.append(pa.table(columns))

    def write(self, home: Home, versions: list[str]) -> None:
        with connect(home.settings) as connection:
            connection.execute(OWNED_TABLES + upstream("hdb"))
            connection.register("drawn", pa.concat_tables(self.parts))
            names = ", ".join(FEATURES)
            connection.execute(
                f"""
                insert into features.features by name
                select 1 as _batch, 1 as built_through_batch, observation_id, month, 'A' as area, price,
                    price is not null as is_price_valid, split, target_offset, {names}
                from drawn
                """
            )
            for version in versions:
                insert_version(connection, version)


def insert_version(connection: duckdb.DuckDBPyConnection, version: str) -> None:
    """A version, its predictions of the evaluation window and of the months drawn for it."""
    connection.execute(
        "insert into training.model_versions (model_version, trained_through) values (?, ?)", [version, TRAINED_THROUGH]
    )
    connection.execute(
        f"""
        insert into predictions.predictions by name
        select observation_id, '{version}' as model_version, 'model' as kind, split, month, predicted_price,
            timestamp '2022-03-01' as scored_at, 'r' as run_id
        from drawn where split = 'eval' or (split <> 'train' and model_version = '{version}')
        """
    )


@pytest.fixture(scope="module")
def rows() -> Rows:
    return training(np.random.default_rng(5))


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory, rows: Rows) -> Home:
    rng = np.random.default_rng(6)
    home = Home(tmp_path_factory.mktemp("drift"), "hdb")
    made = Warehouse()
    months = np.array([add_months(TRAINED_THROUGH, -k) for k in rng.integers(6, 36, TRAIN_ROWS)])
    months[-EVAL_ROWS:] = [add_months(TRAINED_THROUGH, -k) for k in rng.integers(0, 6, EVAL_ROWS)]
    learned = slice(0, TRAIN_ROWS - EVAL_ROWS)
    made.add({k: v[learned] for k, v in rows.items()}, months[learned], "", "train")
    made.add({k: v[-EVAL_ROWS:] for k, v in rows.items()}, months[-EVAL_ROWS:], "", "eval")

    def month(version: str, k: int, drawn: Rows, split: str = "holdout") -> None:
        made.add(drawn, np.full(len(drawn["target"]), add_months(TRAINED_THROUGH, k + 1)), version, split)

    month("v1", 0, drifted(rng, rows))
    month("v1", 1, scored(rng, rows, 29))
    month("v1", 2, scored(rng, rows, 1))
    month("v1", 3, scored(rng, rows, 300), "to_score")
    for version, n in NO_DRIFT.items():
        for k in range(NO_DRIFT_MONTHS):
            month(version, k, take(rows, rng.integers(0, TRAIN_ROWS, n)))
    for k in range(SHIFT_MONTHS):
        shifted = scored(rng, rows, 300)
        # the price is 10 % higher than the model, which knows the level of the months before, can see
        shift = {"target": shifted["target"] + np.log(1.1), "residual": shifted["residual"] - np.log(1.1)}
        month("v300", k, shifted | shift)
    made.write(home, ["v1", *NO_DRIFT, "v300"])
    home.dbt("build", "--exclude-resource-type", "unit_test", "--select", *SELECTED)
    return home


@pytest.fixture(scope="module")
def references(warehouse: Home) -> Rows:
    """The rows that the profiles of v1 state, missing ones left out."""
    found = warehouse.query(
        """
        select * from (from training.training_profile union all from predictions.prediction_profile)
        where model_version = 'v1' and point > 0 order by feature, point
        """
    )
    feature, value, n = (found[name].to_numpy() for name in ("feature", "value", "n"))
    names = [*FEATURES, "prediction", "residual", "target"]
    return {name: np.repeat(value[feature == name], n[feature == name]) for name in names}


def bins_of(reference: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of reference and month in each bin: categories, or tenths that end before any value as frequent as one."""
    values, counts = np.unique(reference, return_counts=True)
    if len(values) <= 25 and (values == np.floor(values)).all():
        edges = [*values, *np.setdiff1d(x, values)[:1]]
        seen = np.isin(x, values)
        month = [*(np.sum(x == v) for v in values), *([np.sum(~seen)] if not seen.all() else [])]
        return np.array([*counts, *([0] if len(edges) > len(values) else [])]), np.array(month)
    tenths = np.quantile(reference, np.arange(1, 10) / 10, method="inverted_cdf")
    frequent = values[:-1][counts[1:] * 10 >= len(reference)]
    edges = np.setdiff1d(np.union1d(tenths, frequent), values[-1:])
    n = [np.bincount(np.searchsorted(edges, v, side="left"), minlength=len(edges) + 1) for v in (reference, x)]
    kept = (n[0] > 0) | (n[1] > 0)
    return n[0][kept], n[1][kept]


def psi(reference: np.ndarray, month: np.ndarray) -> float:
    """Population stability index of counts by bin, with half a row added to each."""
    p, q = ((n + 0.5) / (n + 0.5).sum() for n in (month, reference))
    return float(np.sum((p - q) * np.log(p / q)))


def values_of(home: Home, month: date) -> pa.Table:
    """What v1 saw in a month, a column a feature."""
    return home.query(
        f"""
        select {", ".join(FEATURES)}, ln(predicted_price) - target_offset as prediction,
            ln(predicted_price / price) as residual, ln(price) - target_offset as target
        from predictions.predictions inner join features.features as f using (observation_id)
        where model_version = 'v1' and f.month = '{month}'
        """
    )


def drift(home: Home, version: str, table: str = "feature_drift") -> list[dict[str, Any]]:
    return home.query(f"from monitoring.{table} where model_version = '{version}' order by month").to_pylist()


# each feature has another distribution; a slip with ties, nulls or new values shows only in some of them
@pytest.mark.parametrize("k", [0, 1, 2])
def test_statistics_in_sql_equal_scipy_for_every_feature(warehouse: Home, references: Rows, k: int) -> None:
    month = add_months(TRAINED_THROUGH, k + 1)
    found = [r for t in ("feature_drift", "prediction_drift") for r in drift(warehouse, "v1", t) if r["month"] == month]
    assert {r["feature"] for r in found} == {*FEATURES, "prediction", "residual", "target"}
    values = values_of(warehouse, month)
    for row in found:
        x, ref = values[row["feature"]].to_numpy(), references[row["feature"]]
        assert (row["n"], row["reference_n"]) == (len(x), len(ref)), row
        assert row["missing_pct"] == pytest.approx(100 * np.mean(np.isnan(x)), abs=1e-9)
        x = x[~np.isnan(x)]
        assert row["n_known"] == len(x)
        if not len(x) or not len(ref):
            assert row["ks"] is row["psi"] is row["js"] is row["wasserstein"] is None, row
            continue
        in_reference, in_month = bins_of(ref, x)
        expected = {
            "ks": ks_2samp(x, ref)[0],
            "js": jensenshannon(in_month, in_reference),
            "psi": psi(in_reference, in_month),
        }
        distance, std = wasserstein_distance(x, ref), np.std(ref)
        if std:
            expected["wasserstein"] = distance / std
        else:
            assert row["wasserstein"] == (0 if distance == 0 else None)
        if row["unseen_pct"] is not None:
            expected["unseen_pct"] = 100 * np.mean(~np.isin(x, ref))
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-9), (name, row)


def test_a_month_that_differs_fails_where_it_differs_and_only_there(warehouse: Home) -> None:
    first = {r["feature"]: r for r in drift(warehouse, "v1") if r["month"] == add_months(TRAINED_THROUGH, 1)}
    different = {FEATURES[i] for i in (0, 2, 3, 5, 7, 12, 13)}
    assert {name for name, r in first.items() if r["status"] in ("warn", "fail")} == different
    assert first[FEATURES[0]]["unseen_pct"] > 40
    assert first[FEATURES[13]]["status"] == "fail"  # no value at all any more
    # new where the training rows had none: nothing to compare with
    assert first[FEATURES[6]]["psi"] is None
    assert first[FEATURES[6]]["status"] == "pass"
    summary = drift(warehouse, "v1", "drift_by_month")[0]
    assert (summary["features"], summary["features_drifted"], summary["n"]) == (len(FEATURES), len(different), 700)
    assert summary["feature_status"] == "warn"
    assert summary["worst_feature"] == max(first.values(), key=lambda r: r["excess"])["feature"]
    assert (summary["target_status"], summary["status"]) == ("fail", "fail")
    whole = {
        r["feature"]: r["excess"] for r in drift(warehouse, "v1", "prediction_drift") if r["month"] == summary["month"]
    }
    assert {name: summary[f"{name}_excess"] for name in whole} == whole
    assert whole["target"] > 1


def test_too_few_rows_or_prices_are_no_verdict(warehouse: Home) -> None:
    summaries = drift(warehouse, "v1", "drift_by_month")
    for few in summaries[1:3]:
        assert few["n"] in (29, 1)
        assert few["status"] == few["feature_status"] == few["residual_status"] == "insufficient_data"
        assert few["residual_excess"] is None
    unpriced = summaries[3]
    assert unpriced["feature_status"] == unpriced["prediction_status"] == "pass"
    assert unpriced["residual_status"] == unpriced["target_status"] == "insufficient_data"


@pytest.mark.parametrize("version", NO_DRIFT)
def test_months_without_drift_alarm_at_most_half_as_often_again_as_nominal(warehouse: Home, version: str) -> None:
    (found,) = warehouse.query(
        f"""
        with single as (
            select month, bool_or(status in ('warn', 'fail')) as alarm,
                bool_and(status <> 'insufficient_data') as judged
            from (from monitoring.feature_drift union all from monitoring.prediction_drift)
            where model_version = '{version}' and feature <> '{FEATURES[6]}' group by month
        )
        select count(*) as months, count(*) filter (single.alarm) as any_alarm, bool_and(single.judged) as judged,
            count(*) filter (d.status in ('warn', 'fail')) as alarms
        from single inner join monitoring.drift_by_month as d using (month) where d.model_version = '{version}'
        """
    ).to_pylist()
    assert found["months"] == NO_DRIFT_MONTHS
    assert found["any_alarm"] <= 1.5 * 0.05 * NO_DRIFT_MONTHS, found
    assert found["alarms"] <= found["any_alarm"]
    # not silent for lack of a verdict
    assert found["judged"], found


def test_a_price_shift_of_ten_percent_is_caught_in_the_first_month_of_300_rows(warehouse: Home) -> None:
    found = drift(warehouse, "v300", "drift_by_month")
    assert len(found) == SHIFT_MONTHS
    for row in found:
        assert row["n"] == 300
        assert row["residual_status"] == "fail", row
        assert row["target_status"] in ("warn", "fail"), row
        assert row["feature_status"] == "pass", row


def test_profiles_are_small_and_true_to_the_rows(warehouse: Home, references: Rows, rows: Rows) -> None:
    for feature in [*FEATURES, "target"]:
        x = rows[feature]
        profile = f"training.training_profile where model_version = 'v1' and feature = '{feature}'"
        assert warehouse.one(f"select n from {profile} and point = 0") == np.isnan(x).sum()
        x, stated = np.sort(x[~np.isnan(x)]), references[feature]
        assert len(stated) == len(x)
        if len(np.unique(x)) <= 1000:
            np.testing.assert_array_equal(stated, x)
        else:
            assert len(np.unique(stated)) <= 1001
            assert float(ks_2samp(stated, x)[0]) <= 1 / 500  # pyright: ignore[reportArgumentType]
            assert stated.mean() == pytest.approx(x.mean(), rel=1e-9, abs=1e-12)


def test_only_changed_months_are_measured_again_and_profiles_stay(warehouse: Home, tmp_path: Path) -> None:
    again = Home(tmp_path, "hdb")
    again.settings.warehouse.parent.mkdir(parents=True)
    shutil.copy(warehouse.settings.warehouse, again.settings.warehouse)
    changed = add_months(TRAINED_THROUGH, 2)
    before = again.query("from training.training_profile where model_version = 'v1' order by feature, point")
    with connect(again.settings) as connection:
        # a mark that a new measurement loses; then prices of one month arrive, another version is trained, and a
        # correction changes a training row
        connection.execute("update monitoring.int_drift_statistics set psi = -1")
        connection.execute(
            "update features.features set price = price * 1.5, built_through_batch = 2 where observation_id in "
            f"(select observation_id from predictions.predictions where model_version = 'v1' and month = '{changed}')"
        )
        connection.execute(f"update features.features set {FEATURES[12]} = 100 where month < '2020-01-01'")
        connection.execute(
            "insert into training.model_versions (model_version, trained_through) values ('v2', '2021-12-01')"
        )
    again.dbt("run", "--select", *SELECTED)
    measured = again.query(
        """
        select distinct model_version, month from monitoring.int_drift_statistics
        where psi <> -1 and model_version <> 'v2'
        """
    ).to_pylist()
    assert measured == [{"model_version": "v1", "month": changed}]
    kept = again.query("select count(*) as n from monitoring.int_drift_statistics where model_version <> 'v2'")
    assert kept.to_pylist() == warehouse.query("select count(*) as n from monitoring.int_drift_statistics").to_pylist()
    assert again.query(
        "from training.training_profile where model_version = 'v1' order by feature, point"
    ) == before  # fmt: skip
    greatest = again.one(
        f"select max(value) from training.training_profile where model_version = 'v2' and feature = '{FEATURES[12]}'"
    )
    assert greatest == 100
