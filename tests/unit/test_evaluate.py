"""Metrics against hand-computed answers. SQL against these functions: tests/warehouse/test_monitoring_sql.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ml.evaluate import accuracy, ratio_statistics

ACTUAL = [100.0, 200.0, 300.0, 400.0, 500.0]
PREDICTED = [110.0, 190.0, 330.0, 360.0, 450.0]


def test_accuracy_equals_the_answer_computed_by_hand() -> None:
    # errors 10, 10, 30, 40, 50; percent 10, 5, 10, 10, 10; variance of actual 20000
    expected = {
        "n": 5,
        "mae": 28,
        "rmse": math.sqrt(1040),
        "r2": 1 - 1040 / 20000,
        "mape_pct": 9,
        "mdape_pct": 10,
        "within_5_pct": 20,
        "within_10_pct": 100,
        "within_20_pct": 100,
        "median_ratio": 0.95,
    }
    assert accuracy(ACTUAL, PREDICTED) == pytest.approx(expected, rel=1e-12)


def test_ratio_statistics_equal_the_published_formulas_computed_by_hand() -> None:
    found = ratio_statistics(ACTUAL, PREDICTED)
    assert found["median_ratio"] == pytest.approx(0.95)
    assert found["mean_ratio"] == pytest.approx(0.99)
    assert found["weighted_mean_ratio"] == pytest.approx(0.96)
    assert found["cod"] == pytest.approx(8.421053, abs=5e-7)
    assert found["prd"] == pytest.approx(1.03125, abs=5e-7)
    assert found["prb"] == pytest.approx(-0.078264, abs=5e-7)
    assert found["mki"] == pytest.approx(0.885417, abs=5e-7)


def test_the_standard_error_of_prb_is_that_of_a_textbook_regression() -> None:
    actual, predicted = np.array(ACTUAL), np.array(PREDICTED)
    x = np.log2((predicted / 0.95 + actual) / 2)
    design = np.column_stack([np.ones(5), x])
    y = predicted / actual / 0.95 - 1
    coefficients, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    covariance = residual[0] / 3 * np.linalg.inv(design.T @ design)
    found = ratio_statistics(actual, predicted)
    assert found["prb"] == pytest.approx(coefficients[1], rel=1e-12)
    assert found["prb_se"] == pytest.approx(math.sqrt(covariance[1, 1]), rel=1e-12)


def test_perfect_predictions_have_no_error_and_full_equity() -> None:
    found = accuracy(ACTUAL, ACTUAL) | ratio_statistics(ACTUAL, ACTUAL)
    assert (found["mae"], found["r2"], found["within_5_pct"], found["cod"]) == (0, 1, 100, 0)
    assert (found["prd"], found["prb"], found["mki"]) == (1, 0, 1)


def test_predicting_everything_a_tenth_too_high_is_a_level_error_and_no_unfairness() -> None:
    found = ratio_statistics(ACTUAL, np.array(ACTUAL) * 1.1)
    assert found["median_ratio"] == pytest.approx(1.1)
    assert found["cod"] == pytest.approx(0, abs=1e-12)
    assert found["prb"] == pytest.approx(0, abs=1e-12)
    assert found["mki"] == pytest.approx(1)


def test_the_order_of_rows_with_equal_prices_does_not_change_mki() -> None:
    actual = [100.0, 100.0, 100.0, 200.0]
    assert (
        ratio_statistics(actual, [90.0, 100.0, 140.0, 190.0])["mki"]
        == ratio_statistics(actual, [140.0, 90.0, 100.0, 190.0])["mki"]
    )


def test_equal_prices_leave_r2_and_equity_unknown_instead_of_zero() -> None:
    found = accuracy([0.1] * 3, [0.1] * 3) | ratio_statistics([0.1] * 3, [0.1] * 3)
    assert all(math.isnan(found[name]) for name in ("r2", "prb", "prb_se", "mki"))


def test_two_rows_have_a_slope_without_standard_error() -> None:
    found = ratio_statistics([100.0, 200.0], [110.0, 190.0])
    assert math.isfinite(found["prb"])
    assert math.isnan(found["prb_se"])


@pytest.mark.parametrize("function", [accuracy, ratio_statistics])
@pytest.mark.parametrize(
    ("actual", "predicted", "sentence"),
    [
        ([], [], "empty"),
        ([1.0, 2.0], [1.0], "equal length"),
        ([[1.0]], [[1.0]], "one-dimensional"),
        ([1.0, 0.0], [1.0, 1.0], "actual prices must be positive and finite: 1 are not, the first at position 1"),
        ([1.0, 1.0], [-1.0, 1.0], "predicted prices must be positive"),
        ([1.0], [math.nan], "predicted prices must be positive"),
        ([math.inf], [1.0], "actual prices must be positive"),
    ],
)
def test_prices_that_cannot_be_compared_are_refused_with_a_sentence(
    function: object, actual: list[float], predicted: list[float], sentence: str
) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match=sentence):
        function(actual, predicted)
