"""Our SHAP values against XGBoost's own and against Shapley's definition."""

from __future__ import annotations

from itertools import combinations
from math import factorial

import numpy as np
import pytest
import xgboost as xgb

from ml.treeshap import MAX_DEPTH, shap_values


@pytest.fixture(autouse=True)
def few_rows_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml.treeshap.ROWS_PER_PATTERN", 0)


def data(n: int = 3_000, features: int = 7, missing: float = 0.1, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)).astype(np.float32)
    x[:, 1] = np.round(x[:, 1])  # values that stand on split points
    y = x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2]) + 0.1 * rng.normal(size=n)
    x[rng.random(x.shape) < missing] = np.nan
    return x, y


def train(x: np.ndarray, y: np.ndarray, rounds: int = 30, **params: object) -> xgb.Booster:
    return xgb.train({"max_depth": 5, "eta": 0.3, "nthread": 2, **params}, xgb.DMatrix(x, y), rounds)


def theirs(booster: xgb.Booster, x: np.ndarray) -> np.ndarray:
    return booster.predict(xgb.DMatrix(x), pred_contribs=True)


@pytest.mark.parametrize("depth", [1, 3, 6, 8])
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_equal_to_xgboost(depth: int, missing: float) -> None:
    x, y = data(missing=missing)
    booster = train(x, y, max_depth=depth, subsample=0.8, colsample_bytree=0.8)
    np.testing.assert_allclose(shap_values(booster, x, threads=2), theirs(booster, x), atol=3e-5)


def test_values_never_seen_in_training_go_the_same_way() -> None:
    x, y = data()
    booster = train(x, y)
    odd = np.array([[-1e30] * 7, [np.nan] * 7, [1e30] * 7], dtype=np.float32)
    np.testing.assert_allclose(shap_values(booster, odd, threads=1), theirs(booster, odd), atol=3e-5)


def test_a_split_point_belongs_to_the_right() -> None:
    x, y = data(missing=0)
    booster = train(x, y)
    points = {}
    splits = booster.trees_to_dataframe().dropna(subset=["Split"])
    for feature, split in zip(splits["Feature"], splits["Split"], strict=True):
        points.setdefault(int(feature[1:]), split)
    row = np.array([[points.get(f, 0.0) for f in range(7)]], dtype=np.float32)
    np.testing.assert_allclose(shap_values(booster, row, threads=1), theirs(booster, row), atol=3e-5)


def test_equal_to_the_definition_on_one_tree() -> None:
    x, y = data(missing=0, features=3)
    booster = train(x, y, rounds=1, max_depth=3)
    tree = booster.trees_to_dataframe().set_index("ID")

    def expected(row: np.ndarray, known: tuple[int, ...], node: str = "0-0") -> float:
        """Mean of the leaves that the known features leave possible, weighted by training rows."""
        at = tree.loc[node]
        if at["Feature"] == "Leaf":
            return at["Gain"]
        f = int(at["Feature"][1:])
        if f in known:
            return expected(row, known, at["Yes"] if row[f] < at["Split"] else at["No"])
        covers = [tree.loc[at[way], "Cover"] for way in ("Yes", "No")]
        parts = [expected(row, known, at[way]) for way in ("Yes", "No")]
        return float(np.average(parts, weights=covers))

    for row, found in zip(x[:20], shap_values(booster, x[:20], threads=1), strict=True):
        for f in range(3):
            others = [g for g in range(3) if g != f]
            value = sum(
                factorial(len(s)) * factorial(2 - len(s)) / factorial(3) * (expected(row, (*s, f)) - expected(row, s))
                for size in range(3)
                for s in combinations(others, size)
            )
            assert found[f] == pytest.approx(value, abs=1e-5)


def test_trees_too_deep_are_left_to_xgboost() -> None:
    x, y = data(features=12)
    y = np.nan_to_num(x).sum(axis=1)
    booster = train(x, y, rounds=3, max_depth=12)
    assert max(map(len, _paths(booster))) > MAX_DEPTH, "the case is not the one meant"
    np.testing.assert_allclose(shap_values(booster, x, threads=2), theirs(booster, x), atol=3e-5)


def _paths(booster: xgb.Booster) -> list[list[str]]:
    tree = booster.trees_to_dataframe().set_index("ID")
    out = []

    def walk(node: str, path: list[str]) -> None:
        at = tree.loc[node]
        if at["Feature"] == "Leaf":
            out.append(path)
            return
        for way in ("Yes", "No"):
            walk(at[way], [*path, at["Feature"]])

    walk("0-0", [])
    return out


def test_chunks_and_threads_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data()
    booster = train(x, y)
    whole = shap_values(booster, x, threads=1)
    monkeypatch.setattr("ml.treeshap.CHUNK_ROWS", 7)
    np.testing.assert_allclose(shap_values(booster, x[:100], threads=3), whole[:100], atol=1e-9)


def test_no_rows_and_a_tree_without_splits() -> None:
    x, y = data()
    assert shap_values(train(x, y), x[:0], threads=2).shape == (0, 8)
    flat = train(x, np.zeros(len(y)), rounds=2)
    np.testing.assert_allclose(shap_values(flat, x[:5], threads=2)[:, :-1], 0)
