"""Which rows are learned from, what is fitted, and that it comes out the same every time."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import Ridge

from ml import dataset, params
from ml.baselines import LinearModel, fit_linear
from ml.contract import Contract
from ml.dataset import DatasetError, TrainingData, read, select, training_window
from ml.settings import Settings
from ml.train import fit
from ml.warehouse import connect
from tests import toy


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return toy.warehouse(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def data(settings: Settings) -> TrainingData:
    return load(settings)


def load(settings: Settings, sql: str = "") -> TrainingData:
    """Training data after ``sql`` changed the features, which is rolled back."""
    with connect(settings) as connection:
        connection.execute("begin")
        connection.execute(sql or "select 1")
        selection = select(connection, toy.CONTRACT, training_window(toy.CONTRACT))
        return read(connection, selection)


def model_bytes(data: TrainingData, seed: int = 1) -> bytes:
    chosen = toy.PARAMS.model_copy(update={"seed": seed})
    return bytes(fit(data, chosen, refit=True, threads=2).booster.save_raw("ubj"))


def test_the_window_ends_with_the_contracts_month_or_the_one_asked_for() -> None:
    assert training_window(toy.CONTRACT).eval_from == dt.date(2021, 4, 1)
    assert training_window(toy.CONTRACT).through == dt.date(2021, 6, 1)
    # across the turn of a year
    assert training_window(toy.CONTRACT, "2021-01").eval_from == dt.date(2020, 11, 1)


def test_fitted_values_are_kept_of_every_kth_training_row(
    settings: Settings, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = data.selection.n_train
    assert data.fitted_rows.num_rows == n
    whole = fit(data, toy.PARAMS, refit=True, threads=2)
    monkeypatch.setattr(dataset, "FITTED_ROWS", n // 3)
    monkeypatch.setattr(dataset, "BATCH_ROWS", 100)  # the step goes on across batches
    sampled = load(settings)
    step = sampled.fitted.step
    assert step > 2 and sampled.fitted_rows.num_rows == len(sampled.x[sampled.fitted]) <= n // 3
    every_kth = pa.array(range(0, n, step))
    assert (
        sampled.fitted_rows["observation_id"].to_pylist()
        == data.fitted_rows["observation_id"].take(every_kth).to_pylist()
    )
    result = fit(sampled, toy.PARAMS, refit=True, threads=2)
    # by the model of the evaluation, which has seen these rows and not those of the evaluation
    offset = sampled.fitted_rows["target_offset"].to_numpy()
    np.testing.assert_allclose(result.fitted_price, whole.fitted_price[::step])
    np.testing.assert_allclose(
        np.log(result.fitted_price) - offset, whole.evaluated.inplace_predict(sampled.x[sampled.fitted]), rtol=1e-5
    )


def test_a_dataset_without_dates_refuses_a_month() -> None:
    undated = toy.CONTRACT.model_copy(update={"observed_on": None})
    assert training_window(undated).through is None
    with pytest.raises(DatasetError, match="has no dates"):
        training_window(undated, "2021-01")


def test_training_rows_lie_before_the_evaluation_window_and_evaluation_rows_within(data: TrainingData) -> None:
    # the first month has no history, so no price level and no label
    assert data.selection.n_train == 14 * 60
    assert data.selection.n_eval == 3 * 60
    months = data.eval_rows["month"].to_pylist()
    assert (min(months), max(months)) == (dt.date(2021, 4, 1), dt.date(2021, 6, 1))


def test_rows_come_in_the_order_of_month_and_id(data: TrainingData) -> None:
    keys = list(zip(data.eval_rows["month"].to_pylist(), data.eval_rows["observation_id"].to_pylist(), strict=True))
    assert keys == sorted(keys)


def test_an_invalid_price_is_not_learned_from_but_gets_a_prediction(settings: Settings, data: TrainingData) -> None:
    changed = load(
        settings, "update features.features set is_price_valid = false where month in ('2021-01-01', '2021-05-01')"
    )
    assert changed.selection.n_train == data.selection.n_train - 60
    assert changed.selection.n_eval == data.selection.n_eval - 60
    assert changed.selection.n_eval_invalid == 60
    result = fit(changed, toy.PARAMS, refit=True, threads=1)
    assert len(result.eval_price) == changed.eval_rows.num_rows == 180
    assert result.metrics["n"] == 120


@pytest.mark.parametrize("share", [2, 1])
def test_what_a_lost_column_costs_is_measured_where_it_is_there(settings: Settings, share: int) -> None:
    lost = f"month between '2021-04-01' and '2021-06-01' and hash(observation_id) % {share} = 0"
    data = load(settings, f"update features.features set size = null where {lost}")
    size = data.selection.features.index("size")
    missing = np.isnan(data.x[data.evaluated, size])
    assert missing.mean() == pytest.approx(1 / share, abs=0.15)
    result = fit(data, toy.PARAMS, refit=True, threads=1)
    cost = result.imputation.log_errors[size]
    assert cost > 0.01
    np.testing.assert_array_equal(result.eval_imputation_error > 0, missing)
    assert result.eval_imputation_error.max() == pytest.approx(cost)


@pytest.mark.parametrize("gone", ["month < '2021-04-01'", "month between '2021-04-01' and '2021-06-01'"])
def test_a_window_without_rows_is_refused_with_what_to_do(settings: Settings, gone: str) -> None:
    with pytest.raises(DatasetError, match=r"toy has no row with a valid price .*; land "):
        load(settings, f"delete from features.features where {gone}")


def test_prices_without_a_level_of_earlier_months_are_told_apart_from_none(settings: Settings) -> None:
    said = r"the 900 rows of toy with a valid price before 2021-04 have no price level .*train through a later one$"
    with pytest.raises(DatasetError, match=said):
        load(settings, "update features.features set target_offset = null where month < '2021-04-01'")


def test_a_missing_value_stays_missing(settings: Settings) -> None:
    changed = load(settings, "update features.features set size = null where month = '2020-02-01'")
    size = changed.selection.features.index("size")
    assert np.isnan(changed.x[:60, size]).all()
    assert not np.isnan(changed.x[60:, size]).any()


def test_the_fingerprint_changes_with_a_value_and_not_with_the_order_of_rows(
    settings: Settings, data: TrainingData
) -> None:
    same = load(
        settings, "create or replace table features.features as from features.features order by hash(observation_id)"
    )
    assert same.selection.fingerprint == data.selection.fingerprint
    one = "(select min(observation_id) from features.features where month = '2020-05-01')"
    changed = load(settings, f"update features.features set size = size + 1 where observation_id = {one}")
    assert changed.selection.fingerprint != data.selection.fingerprint
    # the holdout is not looked at
    future = load(settings, "update features.features set size = size + 1 where month > '2021-06-01'")
    assert future.selection.fingerprint == data.selection.fingerprint


def test_same_data_and_seed_give_the_same_bytes_and_another_seed_does_not(
    settings: Settings, data: TrainingData
) -> None:
    first = model_bytes(data)
    assert first == model_bytes(data)
    shuffled = load(
        settings, "create or replace table features.features as from features.features order by hash(observation_id)"
    )
    assert first == model_bytes(shuffled)
    assert first != model_bytes(data, seed=2)


def test_the_evaluation_does_not_see_what_the_refit_learned(data: TrainingData) -> None:
    plain, refitted = (fit(data, toy.PARAMS, refit=refit, threads=2) for refit in (False, True))
    assert plain.metrics == refitted.metrics
    assert plain.booster.num_boosted_rounds() == refitted.booster.num_boosted_rounds() == plain.rounds
    assert plain.booster.save_raw("ubj") != refitted.booster.save_raw("ubj")
    longer = fit(data, toy.PARAMS.model_copy(update={"refit_rounds": "by_rows"}), refit=True, threads=2)
    learned, known = data.train.stop - data.train.start, data.labelled.stop - data.labelled.start
    assert longer.booster.num_boosted_rounds() == round(plain.rounds * known / learned) > plain.rounds
    assert longer.metrics == plain.metrics
    # without a refit the shipped model is the evaluated one, cut at its best round
    offset = data.eval_rows["target_offset"].to_numpy()
    shipped = np.exp(plain.booster.inplace_predict(data.x[data.evaluated]).astype(float) + offset)
    np.testing.assert_array_equal(shipped, plain.eval_price)


def test_the_model_learns_what_the_prices_follow(data: TrainingData) -> None:
    result = fit(data, toy.PARAMS, refit=True, threads=2)
    # 5 % noise leaves a median error of 3.4 %
    assert result.metrics["mdape_pct"] < 6
    assert result.metrics["mae"] < result.baselines["median"]["baseline"]["mae"] / 4
    assert result.baselines["last_year"]["baseline"] == {"n": 0}
    assert result.baselines["persistence"]["baseline"]["n"] == result.metrics["n"]


def test_progress_is_told_each_round(data: TrainingData) -> None:
    told: list[tuple[str, int, int]] = []
    result = fit(data, toy.PARAMS, refit=True, threads=1, progress=lambda *step: told.append(step))
    assert ("train", 1, 60) in told
    assert ("refit on all rows", result.rounds, result.rounds) in told


def test_the_straight_line_is_what_scikit_learn_fits() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(500, 4)).astype(np.float32) * [1, 10, 100, 0] + [0, 5, 1000, 7]
    x = x.astype(np.float32)
    y = x @ [1.0, -0.3, 0.02, 0.0] + rng.normal(size=500)
    line = fit_linear(x, y, alpha=3.0, clip_quantile=0.0)
    standard = (x - x.mean(axis=0, dtype=float)) / np.where(x.std(axis=0) == 0, 1, x.std(axis=0, dtype=float))
    expected = Ridge(alpha=3.0).fit(standard, y).predict(standard)
    np.testing.assert_allclose(line.score(x), expected, rtol=1e-6)


def test_the_straight_line_survives_missing_values_outliers_and_empty_features() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(400, 3)).astype(np.float32)
    y = 2.0 * x[:, 0]
    x[::7, 0], x[:, 1] = np.nan, np.nan
    line = fit_linear(x, y, alpha=1.0, clip_quantile=0.01)
    assert line.coefficients[1] == 0
    extreme = line.score(np.array([[1e9, np.nan, 0], [np.nan, 5, 0]], dtype=np.float32))
    assert extreme[0] == pytest.approx(line.score(np.array([[line.upper[0], 0, 0]], dtype=np.float32))[0])
    assert np.isfinite(extreme).all()
    assert LinearModel(**line.to_dict()).score(x).tolist() == line.score(x).tolist()  # pyright: ignore
    assert line.score(x[:0]).shape == (0,)


def test_every_shipped_dataset_has_parameters() -> None:
    assert params.load("housets").max_depth == 8
    assert params.load("hdb").max_depth == 6
    assert params.load("house_data").min_child_weight == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("eta: 0.05 ", "eta: 2 ", "eta: Input should be less than or equal to 1"),
        ("rounds: 1500 ", "rounds: 40 ", "early_stopping_rounds=50 can never stop 40 rounds"),
        ("early_stopping_rounds: 50 ", "early_stopping_rounds: 2 \nlearning_rate: 1 ", "learning_rate: Extra inputs"),
        ("  ames:", "  aims:", "unknown aims; known are: ames, hdb"),
        ("seed: 1 ", "", "seed: Field required"),
        ("eval_metric: mae ", "eval_metric: median ", "eval_metric: Input should be 'mae' or 'rmse'"),
        ("rounds: 1500 ", "rounds: 51 ", "never"),
        ("eta: 0.05 ", "eta: 0.0001 ", "the model stops before it reaches its target"),
    ],
)
def test_an_illegal_parameter_is_refused_by_name(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = params.PARAMS.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "params.yml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    if said == "never":
        assert params.load("housets", path).rounds == 51
        return
    with pytest.raises(params.ParamsError, match=re.escape(said)):
        params.load("housets", path)


def test_a_profile_changes_the_knobs_it_names() -> None:
    default, best = params.load("hdb"), params.load("hdb", profile="best")
    assert (best.eta, best.rounds, best.max_depth) == (0.02, 6000, default.max_depth)
    assert params.load("hdb", profile="default") == default
    with pytest.raises(params.ParamsError, match="unknown profile 'slow'; known are: default, fast, best"):
        params.load("hdb", profile="slow")


def test_every_knob_is_explained() -> None:
    for line in params.PARAMS.read_text(encoding="utf-8").splitlines():
        if re.match(r"^\w+: \S", line):
            assert "#" in line, line


def test_an_undated_dataset_is_split_by_its_column(settings: Settings) -> None:
    undated = Contract.model_validate(
        {
            **toy.CONTRACT.model_dump(),
            "observed_on": None,
            "encodings": [],
            "level": [],
            "persistence": [],
            "first_month": "1970-01",
            "split": {"eval_share": 0.2, "holdout_share": 0.2},
        }
    )
    with connect(settings) as connection:
        connection.execute("begin")
        connection.execute("update features.features set split = case when size < 70 then 'eval' else 'train' end")
        selection = select(connection, undated, training_window(undated))
    assert selection.features == ("size",)
    assert selection.trained_from is None
    assert (selection.n_train, selection.n_eval) != (0, 0)
    assert selection.n_train + selection.n_eval == 23 * 60
