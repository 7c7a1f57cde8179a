"""What a model must beat: one price for all, the last known price, last year's price, and a straight line.

Prices by persistence and of last year come from the warehouse (``training_dataset``); here stands what is fitted.
Whether a model beats them is decided in ``ml/gate.py``. This file travels inside the bundle: numpy only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

BLOCK = 65_536  # rows made double at a time, so that memory does not grow with the data
SAMPLE = 200_000  # evenly spaced rows that quantiles are taken from


@dataclass(frozen=True)
class LinearModel:
    """Ridge regression on standardised features; missing values are the median, outliers are clipped.

    Lists run over the features in their order. ``score`` answers on the model's own scale (log ratio).
    """

    medians: list[float]
    lower: list[float]
    upper: list[float]
    means: list[float]
    scales: list[float]
    coefficients: list[float]
    intercept: float

    def score(self, x: np.ndarray) -> np.ndarray:
        """Predicted target, float64 of shape (n,), for features of shape (n, features) with NaN for missing."""
        weights = np.asarray(self.coefficients) / np.asarray(self.scales)
        constant = self.intercept - float(weights @ np.asarray(self.means))
        blocks = (_filled(x[i : i + BLOCK], self.medians, self.lower, self.upper) for i in range(0, len(x), BLOCK))
        return np.concatenate([block @ weights + constant for block in blocks] or [np.empty(0)])

    def to_dict(self) -> dict[str, object]:
        """Plain lists and numbers, for JSON."""
        return asdict(self)


def fit_linear(x: np.ndarray, y: np.ndarray, *, alpha: float, clip_quantile: float) -> LinearModel:
    """Fit on features (n, k) with NaN for missing and target (n,).

    Solves the normal equations over blocks of rows, which is what ``sklearn.linear_model.Ridge`` minimises (a test
    compares them) without a second copy of the matrix.
    """
    sample = x[:: max(1, -(-len(x) // SAMPLE))]
    quantiles = [clip_quantile, 0.5, 1 - clip_quantile]
    bounds = np.stack([_quantiles(sample[:, j], quantiles) for j in range(x.shape[1])], axis=1)
    lower, medians, upper = (row.tolist() for row in bounds)

    def blocks() -> list[tuple[int, np.ndarray]]:
        return [(i, x[i : i + BLOCK]) for i in range(0, len(x), BLOCK)]

    means = np.sum([_filled(block, medians, lower, upper).sum(axis=0) for _, block in blocks()], axis=0) / len(x)
    mean_y = float(np.mean(y, dtype=np.float64))
    gram, moment = np.zeros((x.shape[1], x.shape[1])), np.zeros(x.shape[1])
    for i, block in blocks():
        centred = _filled(block, medians, lower, upper) - means
        gram += centred.T @ centred
        moment += centred.T @ (y[i : i + BLOCK] - mean_y)
    scales = np.sqrt(np.diag(gram) / len(x))
    # a feature that never varies has nothing to say; its coefficient comes out as 0
    scales[scales < 1e-12 * np.maximum(1.0, np.abs(means))] = 1.0
    standard = gram / np.outer(scales, scales) + max(alpha, 1e-9) * np.eye(x.shape[1])
    coefficients = np.linalg.solve(standard, moment / scales)
    return LinearModel(medians, lower, upper, means.tolist(), scales.tolist(), coefficients.tolist(), mean_y)


def _quantiles(values: np.ndarray, quantiles: list[float]) -> np.ndarray:
    known = values[~np.isnan(values)]
    return np.quantile(known.astype(np.float64), quantiles) if len(known) else np.zeros(len(quantiles))


def _filled(block: np.ndarray, medians: list[float], lower: list[float], upper: list[float]) -> np.ndarray:
    """Block of rows as float64 without missing values, clipped."""
    return np.clip(np.where(np.isnan(block), medians, block), lower, upper)
