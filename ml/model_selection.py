"""Kinds of models on the same folds and features: error, fit time and size, one row per candidate and fold.

Candidates stand in ``ml/models.yml``. Results are written to ``training.model_selection`` and choose nothing by
themselves: what was chosen, and why, is a line in ``docs/experiments.md``. The loop over parameters of one kind is
``ml/tune.py``.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import yaml

from ml import folds
from ml.contract import Contract
from ml.params import Params, ParamsError
from ml.warehouse import transaction

CANDIDATES = Path(__file__).with_name("models.yml")
METRICS = ("n", "mae", "rmse", "r2", "mdape_pct", "within_10_pct", "median_ratio", "rmse_log")

#: Fits on a fold; returns the scores of its test rows and the size of the fitted model in bytes.
Fitted = tuple[np.ndarray, int]


def compare(
    connection: duckdb.DuckDBPyConnection,
    contract: Contract,
    params: Params,
    *,
    threads: int,
    path: Path = CANDIDATES,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Fit every candidate on every fold and replace ``training.model_selection``; returns its rows.

    Raises ParamsError for a candidate of an unknown kind, DatasetError when no fold has rows.
    """
    candidates = load_candidates(path)
    rows: list[dict[str, Any]] = []
    numbers = folds.numbers(connection, contract)
    for number in numbers:
        fold = folds.read(connection, contract, number)
        for name, settings in candidates.items():
            if progress:
                progress("compare candidates", len(rows), len(numbers) * len(candidates))
            start = time.perf_counter()
            scores, size = _KINDS[settings["kind"]](
                fold, {k: v for k, v in settings.items() if k != "kind"}, params, contract.split.refit, threads
            )
            errors = fold.errors(scores)
            rows.append(
                {
                    "candidate": name,
                    "fold": number,
                    "test_from": fold.test_from,
                    "test_through": fold.test_through,
                    **{metric: errors[metric] for metric in METRICS},
                    "fit_seconds": time.perf_counter() - start,
                    "size_bytes": size,
                }
            )
    with transaction(connection):
        connection.execute("delete from training.model_selection")
        columns = list(rows[0])
        connection.executemany(
            f"insert into training.model_selection ({', '.join(columns)}) values ({', '.join('?' * len(columns))})",
            [[row[c] for c in columns] for row in rows],
        )
    return rows


def load_candidates(path: Path = CANDIDATES) -> dict[str, dict[str, Any]]:
    """Candidates by name. Raises ParamsError naming the file, the candidate and the kinds there are."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["candidates"]
    for name, settings in found.items():
        if settings.get("kind") not in _KINDS:
            raise ParamsError(
                f"{path}: candidates.{name}.kind: {settings.get('kind')!r} is not one of {', '.join(_KINDS)}"
            )
    return found


def _sklearn(fold: folds.Fold, model: Any) -> Fitted:
    # scikit-learn cannot bin what nobody knows of any home
    x = fold.x[:, ~np.isnan(fold.x[fold.known]).all(axis=0)]
    model.fit(x[fold.known], fold.target[fold.known])
    # measured only; nothing pickled is kept or read
    return model.predict(x[fold.test]), len(pickle.dumps(model))


def _ridge(fold: folds.Fold, settings: dict[str, Any], params: Params, refit: bool, threads: int) -> Fitted:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    impute = SimpleImputer(strategy="median", keep_empty_features=True)
    return _sklearn(fold, make_pipeline(impute, StandardScaler(), Ridge(**settings)))


def _random_forest(fold: folds.Fold, settings: dict[str, Any], params: Params, refit: bool, threads: int) -> Fitted:
    from sklearn.ensemble import RandomForestRegressor

    return _sklearn(fold, RandomForestRegressor(n_jobs=threads, random_state=params.seed, **settings))


def _sklearn_boosting(fold: folds.Fold, settings: dict[str, Any], params: Params, refit: bool, threads: int) -> Fitted:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return _sklearn(fold, HistGradientBoostingRegressor(random_state=params.seed, **settings))


def _xgboost(fold: folds.Fold, settings: dict[str, Any], params: Params, refit: bool, threads: int) -> Fitted:
    own = Params.model_validate({**params.model_dump(), **settings})
    boosted = fold.boost(own, refit=refit, threads=threads)
    return boosted.booster.inplace_predict(fold.x[fold.test]), len(boosted.booster.save_raw("ubj"))


_KINDS: dict[str, Callable[[folds.Fold, dict[str, Any], Params, bool, int], Fitted]] = {
    "ridge": _ridge,
    "random_forest": _random_forest,
    "sklearn_boosting": _sklearn_boosting,
    "xgboost": _xgboost,
}
