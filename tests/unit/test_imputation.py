"""What takes the place of a missing value, and what it costs; against hand-computed answers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ml.imputation import FEW, SAMPLE, Imputation

NAN = float("nan")


def training_rows(n: int = 4_000) -> np.ndarray:
    """Four features: always there, missing in fewer rows than FEW, missing in half, missing in half of these."""
    x = np.tile(np.arange(n, dtype=np.float32)[:, None], (1, 4))
    x[: FEW - 1, 1] = NAN
    x[: n // 2, 2] = NAN
    x[: n // 4, 3] = NAN
    return x


def log_price(x: np.ndarray) -> np.ndarray:
    """A model of trees would send a missing value somewhere; this one must never see one of the first two."""
    assert not np.isnan(x[:, :2]).any()
    return 0.01 * x[:, 0] - 0.02 * x[:, 1] + 0.04 * np.nan_to_num(x[:, 3])


def test_only_what_trees_have_hardly_seen_missing_is_filled_in() -> None:
    imputation = Imputation.of(training_rows(), medians=[6, 7, 8, 9])
    given = [
        [1, NAN, NAN, NAN],
        [NAN, NAN, NAN, 3],
        # no training row lacks the fourth and has the third
        [1, 2, 3, NAN],
    ]
    x = np.array(given, dtype=np.float32)
    filled = imputation.fill(x)
    np.testing.assert_array_equal(x, [[1, 7, NAN, NAN], [6, 7, NAN, 3], [1, 2, 3, 9]])
    np.testing.assert_array_equal(filled, np.isnan(given) & ~np.isnan(x))


def test_a_feature_that_is_missing_for_the_row_of_a_training_file_is_left_alone() -> None:
    x = training_rows()
    whole = Imputation.of(x, medians=[6, 7, 8, 9]).fill(x)
    np.testing.assert_array_equal(whole.sum(axis=0), [0, FEW - 1, 0, 0])


def test_what_few_rows_or_none_have_tells_nothing_of_what_is_missing_beside_it() -> None:
    x = np.column_stack([training_rows(), np.full((4_000, 2), NAN, dtype=np.float32)])
    x[-3:, 4] = 1  # where everything else is
    given = [[1, 2, NAN, NAN, 5, 6]]
    asked = np.array(given, dtype=np.float32)
    assert not Imputation.of(x, medians=[1, 1, 1, 1, 1, 1]).fill(asked).any()
    np.testing.assert_array_equal(asked, given)


def test_of_few_rows_a_share_may_be_missing() -> None:
    x = np.ones((100, 2), dtype=np.float32)
    x[:4, 0] = x[:5, 1] = NAN
    assert Imputation.of(x, medians=[1, 1]).fill(np.full((1, 2), NAN, dtype=np.float32)).tolist() == [[True, False]]


def test_features_that_stand_in_for_each_other_cost_more_together() -> None:
    def either(x: np.ndarray) -> np.ndarray:
        return np.maximum(x[:, 0], x[:, 1])

    rows = np.ones((100, 2), dtype=np.float32)
    imputation = Imputation.of(rows, medians=[0, 0.9]).measured(rows, either)
    np.testing.assert_allclose(imputation.log_errors, [0, 0], atol=1e-6)
    imputation = Imputation.of(rows, medians=[0.5, 0.5]).measured(rows, lambda x: either(x) + 0.1 * x.sum(axis=1))
    np.testing.assert_allclose(imputation.log_errors, [0.05, 0.05], rtol=1e-5)
    # alone 0.05 each, 0.0707 as of independent errors; together 0.5 + 0.1
    both, one = np.array([[True, True]]), np.array([[True, False]])
    np.testing.assert_allclose(imputation.error(both), [0.6], rtol=1e-5)
    assert 0.05 < imputation.error(one)[0] < 0.6


def test_the_error_is_the_mean_change_of_the_log_price_and_adds_up_as_of_independent_errors() -> None:
    rows = np.array([[1, 10, NAN, NAN], [3, 14, NAN, 6]], dtype=np.float32)
    imputation = Imputation.of(training_rows(), medians=[2, 10, 0, 5]).measured(rows, log_price)
    # first feature: |1 - 2| and |3 - 2| hundredths; second: |10 - 10| and |14 - 10| fiftieths; fourth: one row has it
    np.testing.assert_allclose(imputation.log_errors, [0.01, (0 + 0.08) / 2, 0, 0.04], rtol=1e-5)
    filled = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=bool)
    np.testing.assert_allclose(imputation.error(filled), [0, 0.01, np.hypot(0.01, 0.04)], rtol=1e-5)


def test_a_sample_of_many_rows_is_measured() -> None:
    asked: list[int] = []

    def predict(x: np.ndarray) -> np.ndarray:
        asked.append(len(x))
        return log_price(x)

    rows = np.ones((10 * SAMPLE + 1, 4), dtype=np.float32)
    imputation = Imputation.of(training_rows(), medians=[2, 1, 1, 1]).measured(rows, predict)
    assert max(asked) <= SAMPLE
    np.testing.assert_allclose(imputation.log_errors, [0.01, 0, 0, 0], rtol=1e-4)


@pytest.mark.parametrize("given", [Imputation.none(3), Imputation.of(np.full((9, 3), NAN), medians=[1, 2, 3])])
def test_without_medians_nothing_is_filled_in(given: Imputation) -> None:
    x = np.full((2, 3), NAN, dtype=np.float32)
    assert not given.fill(x).any()
    assert np.isnan(x).all()
    assert given.error(np.zeros((2, 3), dtype=bool)).tolist() == [0, 0]


def test_it_comes_back_from_json_as_it_was() -> None:
    rows = np.array([[1, 10, NAN, 4]], dtype=np.float32)
    imputation = Imputation.of(training_rows(), medians=[2, 10.1, 0, 5]).measured(rows, log_price)
    again = Imputation.from_dict(json.loads(json.dumps(imputation.to_dict())))
    np.testing.assert_array_equal(again.medians, imputation.medians)
    np.testing.assert_array_equal(again.log_errors, imputation.log_errors)
    np.testing.assert_array_equal(again.unless, imputation.unless)
