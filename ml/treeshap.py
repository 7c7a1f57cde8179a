"""SHAP values of a booster of shallow trees: XGBoost's ``pred_contribs``, several times faster for many rows.

For one leaf, a row matters only by which of the path's features send it the leaf's way: ``2 ** features`` patterns. The
leaf's contribution to each feature is computed once per pattern and looked up for every row (the idea of Yang 2021,
Fast TreeSHAP, algorithm v2). The Shapley weights are an integral over [0, 1] that Gauss-Legendre nodes give exactly
(Yu et al. 2022, Linear TreeSHAP). Trees whose paths have more than MAX_PATH features are left to XGBoost.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost as xgb

MAX_PATH = 8
NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)  # exact up to degree 7, which a path of 8 features reaches
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2
ROWS_PER_PATTERN = 6  # with fewer rows XGBoost itself is faster
CHUNK_ROWS = 4_096  # what a chunk needs stays in the processor's cache


def shap_values(
    booster: xgb.Booster, x: np.ndarray, *, threads: int, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Contributions to the margin, float64 of shape (n, features + 1); the last column is the bias.

    ``x`` is float32 of shape (n, features) with NaN for missing values. ``progress`` is told trees done and in all.
    """
    if not len(x):
        return np.empty((0, x.shape[1] + 1))
    raw = _trees(booster)
    # preparing a tree costs what XGBoost needs for some rows; measured on trees of depth 6 and 8. The first tree stands
    # for all, so that a thousand others are not taken apart for nothing
    if len(x) < ROWS_PER_PATTERN << _Tree.parse(raw[0]).width:
        return _by_xgboost(booster, x)
    trees = [_Tree.parse(tree) for tree in raw]
    if any(tree.width > MAX_PATH for tree in trees):
        return _by_xgboost(booster, x)
    thresholds = _thresholds(trees, x.shape[1])
    codes = np.empty(x.shape[::-1], dtype=np.uint16)
    for f, bounds in enumerate(thresholds):
        # x < bounds[i] exactly where the code is at most i; missing values have a code of their own
        codes[f] = np.where(np.isnan(x[:, f]), len(bounds) + 1, np.searchsorted(bounds, x[:, f], side="right"))
    done = [0]

    def part(first: int) -> np.ndarray:
        out = np.zeros(x.shape, dtype=np.float64)
        for tree in trees[first::threads]:
            tree.add(codes, thresholds, out)
            done[0] += 1
            if progress:
                progress(min(done[0], len(trees)), len(trees))
        return out

    with ThreadPoolExecutor(threads) as pool:
        values = sum(pool.map(part, range(threads)))
    bias = _by_xgboost(booster, np.zeros((1, x.shape[1]), dtype=np.float32))[0, -1]
    return np.column_stack([values, np.full(len(x), bias)])


def _by_xgboost(booster: xgb.Booster, x: np.ndarray) -> np.ndarray:
    return booster.predict(xgb.DMatrix(x), pred_contribs=True, validate_features=False).astype(np.float64)


def _trees(booster: xgb.Booster) -> list[dict[str, Any]]:
    model = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]["model"]
    return model["trees"]


def _thresholds(trees: list[_Tree], features: int) -> list[np.ndarray]:
    """Ascending split points of each feature over all trees."""
    found: list[list[np.ndarray]] = [[] for _ in range(features)]
    for tree in trees:
        for f in np.unique(tree.split_feature):
            found[f].append(tree.split_value[tree.split_feature == f])
    return [np.unique(np.concatenate(f)) if f else np.empty(0, np.float32) for f in found]


@dataclass(frozen=True)
class _Tree:
    """A tree by leaves. Each leaf has up to ``width`` features on its path; places beyond are padded."""

    split_feature: np.ndarray
    split_value: np.ndarray
    feature: np.ndarray
    """int, (leaves, width); -1 pads."""
    lower: np.ndarray
    """float32, (leaves, width): the leaf is reached where lower <= x < upper."""
    upper: np.ndarray
    missing: np.ndarray
    """bool, (leaves, width): a missing value goes the leaf's way."""
    ratio: np.ndarray
    """float64, (leaves, width): share of the training rows that go the leaf's way when the feature is unknown."""
    value: np.ndarray
    """float64, (leaves,)."""

    @property
    def width(self) -> int:
        return self.feature.shape[1]

    @classmethod
    def parse(cls, tree: dict[str, Any]) -> _Tree:
        left, right, feature = tree["left_children"], tree["right_children"], tree["split_indices"]
        value, cover, default_left = tree["split_conditions"], tree["sum_hessian"], tree["default_left"]
        leaves: list[tuple[dict[int, tuple[float, float, bool, float]], float]] = []
        stack: list[tuple[int, dict[int, tuple[float, float, bool, float]]]] = [(0, {})]
        while stack:
            node, path = stack.pop()
            if left[node] == -1:
                leaves.append((path, value[node]))
                continue
            f, at = feature[node], value[node]
            lower, upper, missing, ratio = path.get(f, (-np.inf, np.inf, True, 1.0))
            for child, is_left in ((left[node], True), (right[node], False)):
                share = ratio * cover[child] / cover[node]
                goes = missing and bool(default_left[node]) == is_left
                bounds = (lower, min(upper, at)) if is_left else (max(lower, at), upper)
                stack.append((child, {**path, f: (*bounds, goes, share)}))
        shape = (len(leaves), max(max((len(path) for path, _ in leaves), default=0), 1))
        out = {
            "feature": np.full(shape, -1),
            "lower": np.full(shape, -np.inf, dtype=np.float32),
            "upper": np.full(shape, np.inf, dtype=np.float32),
            "missing": np.ones(shape, dtype=bool),
            "ratio": np.ones(shape),
        }
        for i, (path, _) in enumerate(leaves):
            for j, (f, (lower, upper, missing, ratio)) in enumerate(path.items()):
                out["feature"][i, j], out["lower"][i, j], out["upper"][i, j] = f, lower, upper
                out["missing"][i, j], out["ratio"][i, j] = missing, ratio
        inner = np.array(left) != -1
        return cls(
            split_feature=np.array(feature)[inner],
            split_value=np.array(value, dtype=np.float32)[inner],
            value=np.array([v for _, v in leaves], dtype=np.float64),
            **out,
        )

    def add(self, codes: np.ndarray, thresholds: list[np.ndarray], out: np.ndarray) -> None:
        """Add the tree's SHAP values of all rows; ``codes`` are of shape (features, n), ``out`` of (n, features)."""
        used = np.unique(self.feature[self.feature >= 0])
        if not len(used):
            return
        from scipy.sparse import csr_array

        bits = self._bits(used, thresholds)
        table = self._table(used)
        leaves, patterns, _ = table.shape
        table = table.reshape(leaves * patterns, -1)
        first = np.arange(leaves, dtype=np.int32) * patterns
        for start in range(0, codes.shape[1], CHUNK_ROWS):
            chunk = slice(start, min(start + CHUNK_ROWS, codes.shape[1]))
            n = chunk.stop - chunk.start
            pattern = bits[0][codes[used[0], chunk]]
            for f, way in zip(used[1:], bits[1:], strict=True):
                pattern += way[codes[f, chunk]]
            looked_up = csr_array(
                (
                    np.ones(n * leaves, dtype=np.float32),
                    (pattern + first).ravel(),
                    np.arange(0, n * leaves + 1, leaves, dtype=np.int32),
                ),
                shape=(n, len(table)),
            )
            out[chunk, used] += looked_up @ table

    def _bits(self, used: np.ndarray, thresholds: list[np.ndarray]) -> list[np.ndarray]:
        """For each used feature, the bit that each code sets in the pattern of each leaf: uint8, (codes, leaves)."""
        out = []
        for f in used:
            bounds = thresholds[f]
            # a code stands for the values from the bound before it up to the next
            lowest = np.concatenate([[-np.inf], bounds])
            ways = np.zeros((len(bounds) + 2, len(self.value)), dtype=np.uint8)
            leaf, place = np.nonzero(self.feature == f)
            inside = (lowest[:, None] >= self.lower[leaf, place]) & (lowest[:, None] < self.upper[leaf, place])
            ways[:-1, leaf] = inside << place
            ways[-1, leaf] = self.missing[leaf, place] << place
            out.append(ways)
        return out

    def _table(self, used: np.ndarray) -> np.ndarray:
        """Contribution of each leaf to each used feature by pattern: float32, (leaves, patterns, used)."""
        patterns = 1 << self.width
        on = (np.arange(patterns)[:, None] >> np.arange(self.width) & 1).astype(np.float64)
        padded = self.feature < 0
        # (leaves, patterns, width): 1 where the row goes the leaf's way
        goes = np.where(padded[:, None, :], 1.0, on[None])
        ratio = self.ratio[:, None, :]
        total = np.zeros(goes.shape)
        for node, weight in zip(NODES, WEIGHTS, strict=True):
            factor = goes * node + ratio * (1 - node)
            total += weight * factor.prod(axis=2, keepdims=True) / factor
        amounts = self.value[:, None, None] * (goes - ratio) * total
        table = np.zeros((*goes.shape[:2], len(used)), dtype=np.float32)
        place = np.searchsorted(used, np.where(padded, used[0], self.feature))
        for j in range(self.width):
            rows = np.flatnonzero(~padded[:, j])
            table[rows, :, place[rows, j]] += amounts[rows, :, j]
        return table
