"""A booster's trees for one row or a few, bit for bit as XGBoost adds them up.

XGBoost 3.2 visits every node of every tree before it predicts, to know how deep they are: for one row that is most of
its time and throws everything else out of the processor's cache. Here only the nodes on the row's way are visited, one
step down all trees at a time. Many rows belong to the booster itself.
"""

from __future__ import annotations

import json

import numpy as np
import xgboost as xgb

from ml.bundle import BundleError


class Trees:
    """Trees of a booster of one target whose splits are numeric. Safe to use from several threads."""

    def __init__(self, booster: xgb.Booster) -> None:
        """Take the trees apart. Raises BundleError for a booster of another kind."""
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

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Margins, float32 of shape (n,); ``x`` is float32 of shape (n, features) with NaN for missing values."""
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
