"""Trees of few rows say what XGBoost says, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import xgboost as xgb

from ml.bundle import BundleError
from ml.serving.trees import Trees


def _trained(depth: int, rounds: int, **more: object) -> tuple[xgb.Booster, np.ndarray]:
    random = np.random.default_rng(depth)
    x = random.normal(size=(2_000, 6)).astype(np.float32)
    x[random.random(x.shape) < 0.1] = np.nan
    x[:, 5] = np.round(x[:, 5])  # values that stand exactly on a split
    y = np.nansum(x, axis=1) + random.normal(size=len(x))
    parameters = {"max_depth": depth, "objective": "reg:squarederror", "nthread": 1, **more}
    return xgb.train(parameters, xgb.DMatrix(x, y), rounds), x


@pytest.mark.parametrize(("depth", "rounds"), [(1, 3), (6, 300), (9, 40)])
def test_few_rows_get_exactly_what_xgboost_gives(depth: int, rounds: int) -> None:
    booster, x = _trained(depth, rounds)
    for n in (0, 1, 16, 500):
        got = Trees(booster).predict(x[:n])
        assert got.dtype == np.float32 and got.shape == (n,)
        assert (got == booster.inplace_predict(x[:n])).all()


def test_trees_of_one_leaf_are_known() -> None:
    booster, x = _trained(3, 2, gamma=1e9)
    assert (Trees(booster).predict(x) == booster.inplace_predict(x)).all()


def test_a_booster_whose_sums_are_not_the_answer_is_refused() -> None:
    booster, _ = _trained(2, 2)
    booster.set_param({"objective": "reg:logistic"})
    with pytest.raises(BundleError, match="plain sums only"):
        Trees(booster)
