"""The real interval models and error estimates, run by dbt over a hand-built warehouse, against numpy.

Errors are drawn with a spread that depends on area and on how much is known of the place, so that a range that does not
adapt covers one group too often and the other too rarely.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ml.warehouse import OWNED_TABLES, connect
from tests.conftest import Home, upstream

ROWS = """
insert into raw.files (file, rows, status, batch, loaded_at) values ('a.csv', 1, 'loaded', 1, '2024-03-05');
insert into features.features by name
select 1 as _batch, id as observation_id, month, area, actual as price, is_valid as is_price_valid,
    case when month < date '2021-07-01' then 'eval' else 'holdout' end as split, target_offset, persistence_price,
    history_n
from drawn;
insert into predictions.predictions by name
select id as observation_id, 'v1' as model_version, 'model' as kind,
    case when month < date '2021-07-01' then 'eval' when actual is null then 'to_score' else 'holdout' end as split,
    month, area, predicted as predicted_price, imputation_error, '2022-03-01' as scored_at, 'r' as run_id
from drawn;
insert into training.model_versions (model_version, trained_through) values ('v1', '2021-06-01');
insert into training.learned_areas values ('v1', 'Area 0'), ('v1', 'Area 3');
"""
SELECTED = (
    "confidence_grades", "monitoring_thresholds", "training_profile", "predictions", "interval_coverage",
    "+error_estimates,monitoring",
)  # fmt: skip
N = 12_000
MONTHS = 24


def drawn() -> dict[str, np.ndarray]:
    """Two areas, 24 months from 2021-01; the last month has no prices yet, and homes of two more areas. The version
    learned from areas 0 and 3."""
    rng = np.random.default_rng(11)
    month = rng.integers(0, MONTHS, N)
    area = rng.integers(0, 2, N)
    history_n = rng.integers(0, 3, N)
    predicted = np.exp(rng.normal(12.5, 0.3, N))
    spread = 0.03 * np.where(area == 1, 2.5, 1.0) * np.where(history_n == 0, 1.6, 1.0)
    actual = predicted * np.exp(rng.normal(0, spread))
    actual[month == MONTHS - 1] = np.nan
    # values were filled in for a tenth of the homes, some of them by an earlier release, which did not say so
    filled = np.arange(N) % 10 == 7
    actual *= np.where(filled, np.exp(rng.normal(0, 0.05, N)), 1)
    area[(month == MONTHS - 1) & (np.arange(N) % 10 == 0)] = 2
    area[(month == MONTHS - 1) & (np.arange(N) % 10 == 1)] = 3
    persistence = predicted * np.exp(rng.normal(0, 0.1, N))
    persistence[history_n == 0] = np.nan
    return {
        "i": np.arange(N),
        "month": month,
        "area": area,
        "history_n": history_n,
        "predicted": predicted,
        "imputation_error": np.where(filled, 0.04, np.where(np.arange(N) % 2 == 0, 0, np.nan)),
        "actual": actual,
        "persistence": persistence,
        "target_offset": np.log(predicted) + rng.normal(0, 0.2, N),
        "is_valid": (rng.random(N) < 0.97) & (month < MONTHS - 1),
    }


def fill(home: Home, rows: dict[str, np.ndarray]) -> None:
    with connect(home.settings) as connection:
        connection.execute(OWNED_TABLES + upstream("housets"))
        connection.register("arrays", pa.table({k: pa.array(v, from_pandas=True) for k, v in rows.items()}))
        connection.execute(
            """
            create temp table drawn as
            select 'o' || i as id, 'Area ' || area as area, history_n,
                cast(date '2021-01-01' + to_months(month::int) as date) as month,
                predicted, actual, imputation_error, persistence as persistence_price, target_offset, is_valid
            from arrays
            """
        )
        connection.execute(ROWS)
    home.dbt("build", "--exclude-resource-type", "unit_test", "--select", *SELECTED)


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    return drawn()


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, np.ndarray]) -> Home:
    home = Home(tmp_path_factory.mktemp("intervals"), "housets")
    fill(home, rows)
    return home


def classes(x: np.ndarray, bounds: list[float]) -> np.ndarray:
    """Class of each number by ascending upper bounds; -1 without a value."""
    return np.where(np.isnan(x), -1, np.searchsorted(bounds, x, side="left"))


def twin(rows: dict[str, np.ndarray], month: int) -> tuple[np.ndarray, dict[str, float]]:
    """Scale of the month's rows, shape (n,), and the quantiles of the scores that were known before it."""
    traits = [
        classes(rows["history_n"].astype(float), [0, 1, 3, 7, 15]),
        classes(np.abs(np.log(rows["predicted"] / rows["persistence"])), [0.02, 0.05, 0.1, 0.2]),
        classes(np.abs(np.log(rows["predicted"]) - rows["target_offset"]), [0.1, 0.2, 0.3, 0.5]),
        rows["area"],
    ]
    known = rows["is_valid"] & (rows["month"] < month) & (rows["month"] >= month - 12)
    asked = rows["month"] == month
    error = np.abs(np.log(rows["predicted"] / rows["actual"]))
    overall = error[known].mean()
    scale = overall + np.nan_to_num(rows["imputation_error"])
    for trait in traits:
        factor = np.where(rows["area"] == 2, 2.83, 1.0) if trait is rows["area"] else np.ones(N)
        for value in np.unique(trait):
            members = known & (trait == value)
            n = members.sum()
            if n:
                usual, weight = (2.83, 5.5) if trait is rows["area"] and value == 1 else (1, 20)
                factor[trait == value] = ((error[members] / scale[members]).sum() + weight * usual) / (n + weight)
        scale = scale * factor
    scores = np.sort(error[known] / scale[known])
    shares = {"50": 0.5, "80": 0.8, "95": 0.95, "std": 0.682689}
    rank = {k: int(np.ceil((len(scores) + 1) * share)) for k, share in shares.items()}
    return scale[asked], {k: scores[min(r, len(scores)) - 1] for k, r in rank.items()}


@pytest.mark.parametrize("month", [6, 12, 18, MONTHS - 1])
def test_intervals_in_sql_equal_numpy(warehouse: Home, rows: dict[str, np.ndarray], month: int) -> None:
    scale, quantile = twin(rows, month)
    found = warehouse.query(
        f"""
        select * from predictions.prediction_intervals
        where month = date '2021-01-01' + to_months({month}) order by substr(observation_id, 2)::bigint
        """
    )
    predicted = rows["predicted"][rows["month"] == month]
    assert found.num_rows == len(predicted)
    for level in ("50", "80", "95"):
        for side, sign in (("lower", -1), ("upper", 1)):
            expected = predicted * np.exp(sign * scale * quantile[level])
            np.testing.assert_allclose(found[f"{side}_{level}"].to_numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(found["forecast_std_pct"], 100 * np.expm1(scale * quantile["std"]), rtol=1e-6)


def test_ranges_never_cross_and_grades_follow_the_forecast_standard_deviation(warehouse: Home) -> None:
    assert (
        warehouse.one(
            """
        select count(*) from predictions.prediction_intervals
        where not (0 < lower_95 and lower_95 <= lower_80 and lower_80 <= lower_50 and lower_50 < predicted_price
            and predicted_price < upper_50 and upper_50 <= upper_80 and upper_80 <= upper_95)
        """
        )
        == 0
    )
    grades = warehouse.query(
        """
        select grade, min(forecast_std_pct) as least, max(forecast_std_pct) as greatest
        from predictions.prediction_intervals group by grade order by grade
        """
    ).to_pylist()
    seed = warehouse.query("select upper_forecast_std_pct from predictions.confidence_grades order by grade")
    upper = [*seed.column(0).to_pylist()[:3], np.inf]
    bounds = dict(zip("ABCD", zip([0, *upper], upper, strict=False), strict=True))
    assert [g["grade"] for g in grades] == list("ABCD")
    assert all(bounds[g["grade"]][0] < g["least"] <= g["greatest"] <= bounds[g["grade"]][1] for g in grades), grades


def test_coverage_holds_in_every_area_although_their_errors_differ(warehouse: Home) -> None:
    found = warehouse.query(
        """
        select segment, level_pct, n, coverage_pct, mean_width_pct, status from monitoring.interval_coverage
        where segment_type = 'area' order by segment, level_pct
        """
    ).to_pylist()
    assert [(r["segment"], r["level_pct"]) for r in found] == [
        (a, q) for a in ("Area 0", "Area 1") for q in (50, 80, 95)
    ]
    assert all(abs(r["coverage_pct"] - r["level_pct"]) < 3 and r["status"] == "pass" for r in found), found
    assert found[4]["mean_width_pct"] > 2 * found[1]["mean_width_pct"]


def test_coverage_holds_where_values_were_filled_in(warehouse: Home) -> None:
    found = warehouse.query(
        """
        select imputation_error > 0 as is_filled, avg(upper_80 / lower_80) as width,
            100 * avg((actual_price between lower_80 and upper_80)::int) as covered
        from predictions.prediction_intervals
        inner join predictions.int_prediction_traits using (observation_id, model_version)
        where actual_price is not null group by is_filled order by is_filled
        """
    ).to_pylist()
    assert [r["is_filled"] for r in found] == [False, True]
    # two errors of one size are added, though some of them cancel out: rather too wide than too narrow
    assert abs(found[0]["covered"] - 80) < 3 and 78 < found[1]["covered"] < 92, found
    assert found[1]["width"] > 1.1 * found[0]["width"]


def test_coverage_is_counted_as_numpy_counts_it(warehouse: Home) -> None:
    joined = warehouse.query(
        """
        select actual_price, lower_80, upper_80 from predictions.prediction_intervals
        inner join predictions.actuals using (observation_id) where is_price_valid
        """
    )
    actual, lower, upper = (joined[c].to_numpy() for c in ("actual_price", "lower_80", "upper_80"))
    row = warehouse.query(
        "select n, coverage_pct from monitoring.interval_coverage where segment_type = 'all' and level_pct = 80"
    ).to_pylist()[0]
    assert row["n"] == len(actual)
    assert row["coverage_pct"] == pytest.approx(100 * np.mean((actual >= lower) & (actual <= upper)))


def test_a_price_never_changes_the_range_of_its_own_month_or_an_earlier_one(
    warehouse: Home, rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    edited = Home(tmp_path, "housets")
    prices = np.where(rows["month"] == 15, rows["actual"] * 3, rows["actual"])
    fill(edited, {**rows, "actual": prices})

    def ranges(home: Home, condition: str) -> pa.Table:
        return home.query(f"select * from predictions.prediction_intervals where {condition} order by observation_id")

    before, after = "month <= date '2022-04-01'", "month > date '2022-04-01'"
    assert ranges(edited, before).equals(ranges(warehouse, before))
    assert not ranges(edited, after).equals(ranges(warehouse, after))
    for name in ("estimated_mdape_pct", "lower_mdape_pct", "upper_mdape_pct"):
        mine, theirs = (estimates(home)[name].to_numpy() for home in (edited, warehouse))
        # months 6 to 15, then those that know the edited prices
        np.testing.assert_allclose(mine[:10], theirs[:10], rtol=1e-12)
        assert not np.isclose(mine[10:], theirs[10:]).any()


def estimates(home: Home) -> pa.Table:
    return home.query("from monitoring.error_estimates order by month")


def test_error_estimates_in_sql_equal_numpy_and_say_when_they_stand_alone(
    warehouse: Home, rows: dict[str, np.ndarray]
) -> None:
    found = estimates(warehouse)
    assert found.num_rows == MONTHS - 6
    error = 100 * np.abs(rows["predicted"] / rows["actual"] - 1)
    realised = [np.median(error[(rows["month"] == k) & rows["is_valid"]]) for k in range(MONTHS - 1)]
    np.testing.assert_allclose(found["realised_mdape_pct"].to_numpy()[:-1], realised[6:], rtol=1e-9)
    assert found["is_estimate"].to_pylist() == [False] * (MONTHS - 7) + [True]
    assert (found["realised_mdape_pct"][-1].as_py(), found["status"][-1].as_py()) == (None, "pass")

    y, hardness = np.log(realised), np.full(MONTHS, np.nan)
    for k in range(6, MONTHS):
        scale, quantile = twin(rows, k)
        known = rows["is_valid"] & (rows["month"] < k) & (rows["month"] >= k - 12)
        overall = np.abs(np.log(rows["predicted"] / rows["actual"]))[known].mean()
        width = np.median(np.expm1(scale * quantile["std"]))
        hardness[k] = np.log(width / (overall * quantile["std"]))
    tried: dict[tuple[int, bool], np.ndarray] = {}
    for back in (1, 3, 6, 12):
        for corrected in (False, True):
            level = np.full(MONTHS, np.nan)
            for k in range(1, MONTHS):
                past = slice(max(0, k - back), k)
                level[k] = y[past].mean()
                if corrected and not np.isnan(hardness[past]).all() and not np.isnan(hardness[k]):
                    level[k] += hardness[k] - np.nanmean(hardness[past])
            tried[back, corrected] = level
    for k in range(6, MONTHS):
        past = slice(max(1, k - 12), min(k, MONTHS - 1))
        misses = {name: y[past] - level[past] for name, level in tried.items()}
        best = min(misses, key=lambda name: np.abs(misses[name]).mean().round(12))
        row = found.slice(k - 6, 1).to_pylist()[0]
        assert row["estimated_mdape_pct"] == pytest.approx(np.exp(tried[best][k]), rel=1e-6), (k, best)
        spread = np.sqrt((np.sum(misses[best] ** 2) + 0.03) / (len(misses[best]) + 3))
        # predictions of these months do not drift, so that nothing widens the range
        assert row["upper_mdape_pct"] / row["estimated_mdape_pct"] == pytest.approx(np.exp(1.96 * spread), rel=1e-6)
