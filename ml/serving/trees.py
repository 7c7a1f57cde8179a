"""What a booster's trees say, bit for bit as XGBoost adds them up, but sooner.

XGBoost 3.2 visits every node of every tree before it predicts, to know how deep they are: for one row that is most of
its time and throws everything else out of the processor's cache. So for few rows only the nodes on their way are
visited, one step down all trees at a time. Many rows are left to XGBoost, but some trees at a time: it sends 64 rows
down all trees before the next 64, and a thousand trees do not fit into a core's cache.
"""

from __future__ import annotations

import json

import numpy as np
import xgboost as xgb

from ml.bundle import BundleError

#: So many rows are faster without XGBoost.
FEW_ROWS = 16
#: Nodes of the trees that many rows go down at a time. XGBoost's take 20 bytes each; measured from 5,000 to 80,000.
NODES = 40_000


class Trees:
    """Trees of a booster of one target whose splits are numeric. Safe to use from several threads."""

    def __init__(self, booster: xgb.Booster) -> None:
        """Take the trees apart. Raises BundleError for a booster of another kind."""
        self._booster = booster.copy()
        # requests run side by side; threads of one that wait for each other cost more
        self._booster.set_param({"nthread": 1})
        learner = json.loads(bytes(booster.save_raw("json")))["learner"]
        trees = learner["gradient_booster"]["model"]["trees"]
        if learner["objective"]["name"] != "reg:squarederror" or any(tree["categories"] for tree in trees):
            raise BundleError("the API knows trees of numeric splits and plain sums only")
        sizes = np.array([len(tree["left_children"]) for tree in trees], dtype=np.int64)
        self._roots = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._base = np.float32(learner["learner_model_param"]["base_score"].strip("[]"))
        first = np.repeat(self._roots, sizes)

        def joined(name: str, dtype: type) -> np.ndarray:
            return np.concatenate([np.array(tree[name], dtype=dtype) for tree in trees])

        left, right = joined("left_children", np.int64), joined("right_children", np.int64)
        leaf, itself = left == -1, np.arange(len(left))
        #: where to go on, by node: left in column 1, right in 0; a leaf leads to itself
        self._next = np.column_stack([np.where(leaf, itself, first + right), np.where(leaf, itself, first + left)])
        self._feature = joined("split_indices", np.intp)
        self._value = joined("split_conditions", np.float32)
        """Below it a row goes left; the value of a leaf."""
        self._missing_left = joined("default_left", bool)
        self._depth, nodes = 0, self._roots
        while not leaf[nodes].all():
            nodes = np.unique(self._next[nodes])
            self._depth += 1
        rounds = booster.num_boosted_rounds()
        step = max(1, rounds * NODES // len(left))
        self._parts = [(first, min(rounds, first + step)) for first in range(0, rounds, step)]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Margins, float32 of shape (n,); ``x`` is float32 of shape (n, features) with NaN for missing values."""
        return self._of_few(x) if len(x) <= FEW_ROWS else self._of_many(x)

    def _of_many(self, x: np.ndarray) -> np.ndarray:
        # a missing value makes XGBoost take the slower way for all the rows that stand near it
        order = np.argsort(np.isnan(x).any(axis=1), kind="stable")
        rows, sums = x[order], None
        for part in self._parts:
            sums = self._booster.inplace_predict(rows, iteration_range=part, base_margin=sums)
        out = np.empty(len(x), dtype=np.float32)
        out[order] = sums
        return out

    def _of_few(self, x: np.ndarray) -> np.ndarray:
        rows = np.arange(len(x))[:, None]
        node = np.repeat(self._roots[None], len(x), axis=0)
        for _ in range(self._depth):
            value = x[rows, self._feature[node]]
            left = (value < self._value[node]) | (np.isnan(value) & self._missing_left[node])
            node = self._next[node, left.view(np.int8)]
        sums = np.empty((len(x), len(self._roots) + 1), dtype=np.float32)
        sums[:, 0], sums[:, 1:] = self._base, self._value[node]
        # one after the other, as XGBoost does: another order rounds otherwise
        return np.add.accumulate(sums, axis=1)[:, -1]
