"""Error metrics and ratio statistics of predicted against actual prices, as numpy arrays.

The twin of ``warehouse/models/monitoring`` for the time before predictions stand in the warehouse: training reports
with it, and tests hold the two together. Verdicts and thresholds are SQL and data (``monitoring_thresholds``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(actual: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Error metrics of n predictions.

    ``actual`` and ``predicted`` have shape (n,) and one currency, which is the unit of ``mae`` and ``rmse``; ``*_pct``
    are percent of the actual price; ``median_ratio`` is predicted / actual; ``r2`` is 1 - squared error / variance of
    ``actual``, NaN when that is 0. Raises ValueError where n is 0, the shapes differ or a price is not positive.
    """
    actual, predicted = _prices(actual, predicted)
    error = np.abs(predicted - actual)
    pct_error = 100 * error / actual
    mean_squared_error = np.mean(error**2)
    return {
        "n": float(actual.size),
        "mae": float(np.mean(error)),
        "rmse": float(np.sqrt(mean_squared_error)),
        "r2": float(1 - mean_squared_error / np.var(actual)) if np.ptp(actual) > 0 else float("nan"),
        "mape_pct": float(np.mean(pct_error)),
        "mdape_pct": float(np.median(pct_error)),
        **{f"within_{limit}_pct": float(100 * np.mean(pct_error <= limit)) for limit in (5, 10, 20)},
        "median_ratio": float(np.median(predicted / actual)),
    }


def ratio_statistics(actual: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Level, uniformity and vertical equity of n predictions, from ratios r = predicted / actual with median m.

    - ``median_ratio``, ``mean_ratio``; ``weighted_mean_ratio`` = sum of predicted / sum of actual
    - ``cod`` = 100 * mean of abs(r - m) / m, in percent
    - ``prd`` = mean ratio / weighted mean ratio
    - ``prb`` = slope of (r - m) / m on log2 of (predicted / m + actual) / 2, with its standard error ``prb_se``
    - ``mki`` = Gini of predicted in the order of actual / Gini of actual; equal prices share their mean rank

    Sources: IAAO, Standard on Ratio Studies (2013), appendix B; Quintos (2020), A Gini measure for vertical equity in
    property assessments, for ``mki``. Shapes, units and errors are those of ``accuracy``. A statistic that needs more
    variation than there is (``prb``, ``prb_se``, ``mki``) is NaN.
    """
    actual, predicted = _prices(actual, predicted)
    ratio = predicted / actual
    median = np.median(ratio)
    weighted_mean = predicted.sum() / actual.sum()
    prb, prb_se = _slope(np.log2((predicted / median + actual) / 2), ratio / median - 1)
    rank = _mean_rank(actual)
    mki = _gini(predicted, rank) / _gini(actual, rank) if np.ptp(actual) > 0 else float("nan")
    return {
        "n": float(actual.size),
        "median_ratio": float(median),
        "mean_ratio": float(ratio.mean()),
        "weighted_mean_ratio": float(weighted_mean),
        "cod": float(100 * np.mean(np.abs(ratio - median)) / median),
        "prd": float(ratio.mean() / weighted_mean),
        "prb": prb,
        "prb_se": prb_se,
        "mki": float(mki),
    }


def _prices(actual: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, p = np.asarray(actual, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if a.ndim != 1 or a.shape != p.shape:
        raise ValueError(f"actual {a.shape} and predicted {p.shape} must be one-dimensional and of equal length")
    if a.size == 0:
        raise ValueError("no prices to compare: actual and predicted are empty")
    for name, prices in (("actual", a), ("predicted", p)):
        bad = ~((prices > 0) & np.isfinite(prices))
        if bad.any():
            raise ValueError(
                f"{name} prices must be positive and finite: {bad.sum()} are not, the first at position {bad.argmax()}"
            )
    return a, p


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Least-squares slope of y on x with its standard error; NaN where x does not vary or n < 3."""
    if np.ptp(x) == 0:
        return float("nan"), float("nan")
    slope = np.mean((x - x.mean()) * (y - y.mean())) / np.var(x)
    if x.size < 3:
        return float(slope), float("nan")
    residual = max(np.var(y) - slope**2 * np.var(x), 0.0)
    return float(slope), float(np.sqrt(residual / ((x.size - 2) * np.var(x))))


def _mean_rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank of each value from 1; equal values share the mean of their ranks."""
    _, position, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return ((last - count + 1 + last) / 2)[position]


def _gini(values: NDArray[np.float64], rank: NDArray[np.float64]) -> float:
    n = values.size
    return float(2 * np.sum(rank * values) / (n * values.sum()) - (n + 1) / n)
