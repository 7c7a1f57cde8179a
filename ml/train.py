"""Fitting: XGBoost on the log ratio to the as-of price level, beside a straight line, and their error.

A pure function of data, parameters and thread count: the same three give the same model, byte for byte. Where rows
come from stands in ``ml/dataset.py``; what becomes of the result in ``ml/registry.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xgboost as xgb
from xgboost.callback import TrainingCallback

from ml.baselines import LinearModel, fit_linear
from ml.dataset import TrainingData
from ml.evaluate import accuracy
from ml.imputation import Imputation
from ml.params import Params

#: Evaluation rows without a filled value that tell what a missing one costs.
LEAST_WHOLE = 100

#: Called with what is being done, how much is done and how much there is (0 when unknown).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Fit:
    """A fitted version. What is shipped may have learned from the evaluation rows; what is evaluated never has."""

    booster: xgb.Booster
    """The shipped model: refitted on train + eval where the contract says so."""
    evaluated: xgb.Booster
    """The model that the metrics are of; it has not seen the evaluation rows."""
    linear: LinearModel
    """The shipped straight line, fitted on the same rows."""
    imputation: Imputation
    """What stands in for missing values, in all of these prices as well."""
    rounds: int
    curves: dict[str, list[float]]
    """Error by round on ``train`` and ``eval``."""
    eval_price: np.ndarray
    """Prices of ``data.evaluated`` by a booster that has not seen them, shape (n,)."""
    eval_linear_price: np.ndarray
    eval_imputation_error: np.ndarray
    """``Imputation.error`` of the same rows."""
    fitted_price: np.ndarray
    """Prices of ``data.fitted`` by the same booster, which has learned from them, shape (n,)."""
    fitted_linear_price: np.ndarray
    metrics: dict[str, Any]
    """``accuracy`` over ``data.evaluation``."""
    baselines: dict[str, dict[str, dict[str, Any]]]
    """By baseline: accuracy of the ``baseline`` and of the ``model`` on the rows the baseline has a price for."""


@dataclass(frozen=True)
class Boosted:
    """A booster with early stopping, and the one that has not seen the rows it stopped on."""

    booster: xgb.Booster
    """Fitted on train + eval where ``refit``; else ``evaluated``."""
    evaluated: xgb.Booster
    rounds: int
    curves: dict[str, list[float]]
    """Error by round on ``train`` and ``eval``."""


def boost(
    x: np.ndarray,
    target: np.ndarray,
    train: slice,
    evaluation: slice,
    *,
    params: Params,
    features: Sequence[str],
    refit: bool,
    threads: int,
    progress: Progress | None = None,
) -> Boosted:
    """XGBoost on the rows ``train`` of x (n, features) and target (n,), stopped on ``evaluation``, which follows it."""
    settings = params.booster(threads)

    def matrix(rows: slice, ref: xgb.DMatrix | None = None) -> xgb.QuantileDMatrix:
        return xgb.QuantileDMatrix(
            x[rows], target[rows], feature_names=list(features), max_bin=params.max_bin, nthread=threads, ref=ref
        )

    learned = matrix(train)
    curves: dict[str, dict[str, list[float]]] = {}
    booster = xgb.train(
        settings,
        learned,
        params.rounds,
        evals=[(learned, "train"), (matrix(evaluation, learned), "eval")],
        early_stopping_rounds=params.early_stopping_rounds,
        evals_result=curves,
        verbose_eval=False,
        callbacks=_told(progress, "train", params.rounds),
    )
    del learned
    rounds = booster.best_iteration + 1
    evaluated = booster[:rounds]
    if refit:
        together = slice(train.start, evaluation.stop)
        again = rounds
        if params.refit_rounds == "by_rows":
            again = round(rounds * (together.stop - together.start) / (train.stop - train.start))
        booster = xgb.train(settings, matrix(together), again, callbacks=_told(progress, "refit on all rows", again))
    else:
        booster = evaluated
    return Boosted(
        booster=booster,
        evaluated=evaluated,
        rounds=rounds,
        curves={name: curve[params.eval_metric] for name, curve in curves.items()},
    )


def fit(data: TrainingData, params: Params, *, refit: bool, threads: int, progress: Progress | None = None) -> Fit:
    """Train with early stopping on the evaluation rows; then fit again on all of them when ``refit``.

    Trees learn from the rows as they are; medians take the place of what they hardly saw missing before they are asked.
    """
    boosted = boost(
        data.x, data.target, data.train, data.evaluation, params=params, features=data.selection.features,
        refit=refit, threads=threads, progress=progress,
    )  # fmt: skip
    line = _line(data, params, data.train)
    imputation = Imputation.of(data.x[data.train], line.medians)
    x, x_fitted = data.x[data.evaluated].copy(), data.x[data.fitted].copy()
    filled = imputation.fill(x)
    imputation.fill(x_fitted)
    # rows that it has not learned, unless too few of them lacked nothing
    whole = x[: data.selection.n_eval][~filled[: data.selection.n_eval].any(axis=1)]
    known = whole if len(whole) >= LEAST_WHOLE else data.x[data.train]
    imputation = imputation.measured(known, boosted.evaluated.inplace_predict)

    def prices(x: np.ndarray, kept: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        offset = kept["target_offset"].to_numpy()
        scores = boosted.evaluated.inplace_predict(x).astype(np.float64)
        return np.exp(scores + offset), np.exp(line.score(x) + offset)

    price, line_price = prices(x, data.eval_rows)
    fitted_price, fitted_line_price = prices(x_fitted, data.fitted_rows)
    if refit:
        line = _line(data, params, data.labelled)
    metrics, baselines = _errors(data, price, line_price)
    return Fit(
        booster=boosted.booster,
        evaluated=boosted.evaluated,
        linear=line,
        imputation=imputation,
        rounds=boosted.rounds,
        curves=boosted.curves,
        eval_price=price,
        eval_linear_price=line_price,
        eval_imputation_error=imputation.error(filled),
        fitted_price=fitted_price,
        fitted_linear_price=fitted_line_price,
        metrics=metrics,
        baselines=baselines,
    )


def _line(data: TrainingData, params: Params, rows: slice) -> LinearModel:
    return fit_linear(
        data.x[rows], data.target[rows], alpha=params.linear_alpha, clip_quantile=params.linear_clip_quantile
    )


def _errors(
    data: TrainingData, price: np.ndarray, line_price: np.ndarray
) -> tuple[dict[str, Any], dict[str, dict[str, dict[str, Any]]]]:
    n = data.selection.n_eval
    actual = data.eval_rows["price"].to_numpy()[:n]
    candidates = {
        "median": np.full(n, data.selection.median_price),
        "persistence": data.eval_rows["persistence_price"].to_numpy()[:n],
        "last_year": data.eval_rows["last_year_price"].to_numpy()[:n],
        "linear": line_price[:n],
    }
    pairs = {}
    for name, candidate in candidates.items():
        has = np.isfinite(candidate)
        pairs[name] = (
            {"baseline": accuracy(actual[has], candidate[has]), "model": accuracy(actual[has], price[:n][has])}
            if has.any()
            else {"baseline": {"n": 0}, "model": {"n": 0}}
        )
    return accuracy(actual, price[:n]), pairs


def _told(progress: Progress | None, task: str, rounds: int) -> list[TrainingCallback]:
    return [_Tell(progress, task, rounds)] if progress else []


class _Tell(TrainingCallback):
    """Reports each round."""

    def __init__(self, progress: Progress, task: str, rounds: int) -> None:
        self._progress, self._task, self._rounds = progress, task, rounds

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        self._progress(self._task, epoch + 1, self._rounds)
        return False

    def after_training(self, model: Any) -> Any:
        self._progress(self._task, self._rounds, self._rounds)
        return model
