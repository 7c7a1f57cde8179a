"""SHAP values of a booster of shallow trees: XGBoost's ``pred_contribs``, several times faster for many rows.

For one leaf, a row matters only by which splits of the path send it the leaf's way: ``2 ** splits`` patterns. The
leaf's contribution to each feature is computed once per pattern and looked up for every row (the idea of Yang 2021,
Fast TreeSHAP, algorithm v2), here for all leaves of a twig at once. The Shapley weights are an integral over [0, 1]
that Gauss-Legendre nodes give exactly (Yu et al. 2022, Linear TreeSHAP). Trees deeper than MAX_DEPTH are left to
XGBoost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost as xgb

MAX_DEPTH = 8
#: A bit for each split: a tree of MAX_DEPTH has room for twigs of one split, others of three.
PATTERN = np.dtype(np.uint8)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)  # exact up to degree 7, which a path of MAX_DEPTH features reaches
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2
ROWS_PER_PATTERN = 6  # with fewer rows XGBoost itself is faster
CHUNK_ROWS = 8_192  # what a chunk needs stays in the processor's cache
WORD = np.dtype(np.uint64)  # the patterns of so many twigs are looked up together


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
    if len(x) < ROWS_PER_PATTERN << _heights(raw[0])[0]:
        return _by_xgboost(booster, x)
    heights = [_heights(tree) for tree in raw]
    if max(height[0] for height in heights) > MAX_DEPTH:
        return _by_xgboost(booster, x)
    trees = [_Tree.parse(*tree) for tree in zip(raw, heights, strict=True)]
    thresholds = _thresholds(trees, x.shape[1])
    codes = np.empty(x.shape[::-1], dtype=np.uint16)
    for f, bounds in enumerate(thresholds):
        # x < bounds[i] exactly where the code is at most i; missing values have a code of their own
        codes[f] = np.where(np.isnan(x[:, f]), len(bounds) + 1, np.searchsorted(bounds, x[:, f], side="right"))
    done = [0]

    def part(first: int) -> np.ndarray:
        out = np.zeros(codes.shape, dtype=np.float64)
        for tree in trees[first::threads]:
            tree.add(codes, thresholds, out)
            done[0] += 1
            if progress:
                progress(min(done[0], len(trees)), len(trees))
        return out

    with ThreadPoolExecutor(threads) as pool:
        values = sum(pool.map(part, range(threads)))
    bias = _by_xgboost(booster, np.zeros((1, x.shape[1]), dtype=np.float32))[0, -1]
    return np.vstack([values, np.full(len(x), bias)]).T


def _by_xgboost(booster: xgb.Booster, x: np.ndarray) -> np.ndarray:
    return booster.predict(xgb.DMatrix(x), pred_contribs=True, validate_features=False).astype(np.float64)


def _trees(booster: xgb.Booster) -> list[dict[str, Any]]:
    model = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]["model"]
    return model["trees"]


def _thresholds(trees: list[_Tree], features: int) -> list[np.ndarray]:
    """Ascending split points of each feature over all trees."""
    found: list[list[np.ndarray]] = [[] for _ in range(features)]
    for tree in trees:
        for f in np.unique(tree.feature):
            found[f].append(tree.at[tree.feature == f])
    return [np.unique(np.concatenate(f)) if f else np.empty(0, np.float32) for f in found]


@dataclass(frozen=True)
class _Tree:
    """A tree as twigs: its largest subtrees of at most one or two splits between root and leaf.

    What a row adds depends on its pattern in each twig: one bit for each split of the twig or on the way to it, set
    where the row goes left. One pattern, looked up once, serves all leaves of the twig.
    """

    feature: np.ndarray
    """int, (splits,)."""
    at: np.ndarray
    """float32, (splits,): left where x < at."""
    missing: np.ndarray
    """bool, (splits,): a missing value goes left."""
    sets: np.ndarray
    """PATTERN, (splits, twigs): the bit that going left sets in each twig's pattern; padded to whole WORDs."""
    patterns: int
    first_leaf: np.ndarray
    """int, (twigs,), here without padding: the leaves of a twig follow each other."""
    path: np.ndarray
    """int, (width, leaves): the features on the way to each leaf; -1 pads."""
    mask: np.ndarray
    """int, (width, leaves): a row goes the leaf's way by that feature where its pattern & mask == wanted."""
    wanted: np.ndarray
    ratio: np.ndarray
    """float64, (width, leaves): share of the training rows that go the leaf's way when the feature is unknown."""
    value: np.ndarray
    """float64, (leaves,)."""

    @classmethod
    def parse(cls, tree: dict[str, Any], height: list[int]) -> _Tree:
        """``height`` is that of each node."""
        left, right, feature = tree["left_children"], tree["right_children"], tree["split_indices"]
        value, cover = tree["split_conditions"], tree["sum_hessian"]
        twig_height = 2 if height[0] < MAX_DEPTH else 1
        twigs: list[list[int]] = []
        first_leaf: list[int] = []
        leaves: list[tuple[float, dict[int, tuple[float, int, int]]]] = []
        # node, the splits above it with the way taken, whether its twig has begun
        stack: list[tuple[int, list[tuple[int, bool]], bool]] = [(0, [], False)]
        while stack:
            node, above, begun = stack.pop()
            if not begun and height[node] <= twig_height:
                begun = True
                twigs.append([split for split, _ in above])
                first_leaf.append(len(leaves))
            if left[node] != -1:
                if begun:
                    twigs[-1].append(node)
                stack.append((right[node], [*above, (node, False)], begun))
                stack.append((left[node], [*above, (node, True)], begun))
                continue
            path: dict[int, tuple[float, int, int]] = {}
            for split, is_left in above:
                ratio, mask, wanted = path.get(feature[split], (1.0, 0, 0))
                bit = 1 << twigs[-1].index(split)
                child = left[split] if is_left else right[split]
                path[feature[split]] = (ratio * cover[child] / cover[split], mask | bit, wanted | bit * is_left)
            leaves.append((value[node], path))
        sets = np.zeros((len(left), len(twigs) + -len(twigs) % WORD.itemsize), dtype=PATTERN)
        for number, twig in enumerate(twigs):
            sets[twig, number] = 1 << np.arange(len(twig))
        inner = np.flatnonzero(np.array(left) != -1)
        steps = [list(path.values()) for _, path in leaves]
        return cls(
            feature=np.array(feature)[inner],
            at=np.array(value, dtype=np.float32)[inner],
            missing=np.array(tree["default_left"], dtype=bool)[inner],
            sets=sets[inner],
            patterns=1 << max(map(len, twigs)),
            first_leaf=np.array(first_leaf),
            path=_padded([list(path) for _, path in leaves], -1),
            mask=_padded([[mask for _, mask, _ in step] for step in steps], 0),
            wanted=_padded([[wanted for _, _, wanted in step] for step in steps], 0),
            ratio=_padded([[ratio for ratio, _, _ in step] for step in steps], 1.0),
            value=np.array([leaf for leaf, _ in leaves], dtype=np.float64),
        )

    def add(self, codes: np.ndarray, thresholds: list[np.ndarray], out: np.ndarray) -> None:
        """Add the tree's SHAP values of all rows; ``codes`` and ``out`` are of shape (features, n)."""
        used = np.unique(self.feature)
        if not len(used):
            return
        from scipy.sparse import csr_array

        ways = [self._ways(f, thresholds[f]) for f in used]
        table = self._table(used)
        twigs = len(self.first_leaf)
        first = np.arange(twigs, dtype=np.int32) * self.patterns
        for start in range(0, codes.shape[1], CHUNK_ROWS):
            chunk = slice(start, min(start + CHUNK_ROWS, codes.shape[1]))
            n = chunk.stop - chunk.start
            words = np.zeros((len(ways[0]), n), dtype=WORD)
            for f, way in zip(used, ways, strict=True):
                for i, by_code in enumerate(way):
                    # no code is out of range; with this mode numpy need not look first
                    words[i] += np.take(by_code, codes[f, chunk], mode="clip")
            pattern = np.ascontiguousarray(words.T).view(PATTERN)[:, :twigs]
            looked_up = csr_array(
                (
                    np.ones(n * twigs, dtype=np.float32),
                    (pattern + first).ravel(),
                    np.arange(0, n * twigs + 1, twigs, dtype=np.int32),
                ),
                shape=(n, len(table)),
            )
            for f, found in zip(used, (looked_up @ table).T, strict=True):
                out[f, chunk] += found

    def _ways(self, f: int, bounds: np.ndarray) -> np.ndarray:
        """What each code of a feature adds to the patterns of all twigs: WORD, (words, codes)."""
        splits = np.flatnonzero(self.feature == f)
        # a code stands for the values from the bound before it up to the next
        lowest = np.concatenate([[-np.inf], bounds])
        is_left = np.vstack([lowest[:, None] < self.at[splits], self.missing[splits]])
        sets = self.sets[splits].view(WORD)
        return np.array([is_left @ word for word in sets.T])

    def _table(self, used: np.ndarray) -> np.ndarray:
        """Contribution of each twig to each used feature by pattern: float32, (twigs * patterns, used)."""
        pattern = np.arange(self.patterns)
        # (width, leaves, patterns): 1 where the row goes the leaf's way, as it does where there is nothing to ask
        goes = ((pattern & self.mask[..., None]) == self.wanted[..., None]).astype(np.float64)
        ratio = self.ratio[..., None]
        total = np.zeros(goes.shape)
        for node, weight in zip(NODES, WEIGHTS, strict=True):
            factor = goes * node + ratio * (1 - node)
            total += weight * factor.prod(axis=0) / factor
        amounts = self.value[:, None] * (goes - ratio) * total
        place, leaf = np.nonzero(self.path >= 0)
        column = np.searchsorted(used, self.path[place, leaf])
        twig = np.searchsorted(self.first_leaf, leaf, side="right") - 1
        number = leaf - self.first_leaf[twig]
        by_twig = np.zeros((len(self.first_leaf), len(used), self.patterns), dtype=np.float32)
        for n in range(number.max() + 1):
            # the n-th leaf of each twig: no place is met twice, which += would forget
            at = number == n
            by_twig[twig[at], column[at]] += amounts[place[at], leaf[at]]
        return np.ascontiguousarray(by_twig.transpose(0, 2, 1)).reshape(-1, len(used))


def _heights(tree: dict[str, Any]) -> list[int]:
    """Most splits between each node and a leaf below it; the root is the first."""
    left, right = tree["left_children"], tree["right_children"]
    order = [0]
    for node in order:
        if left[node] != -1:
            order += [left[node], right[node]]
    height = [0] * len(left)
    for node in reversed(order):
        if left[node] != -1:
            height[node] = 1 + max(height[left[node]], height[right[node]])
    return height


def _padded(columns: Sequence[Sequence[float]], fill: float) -> np.ndarray:
    """Columns of unequal length as one array, at least one row high, of the type of ``fill``."""
    out = np.full((max([1, *map(len, columns)]), len(columns)), fill)
    for i, column in enumerate(columns):
        out[: len(column), i] = column
    return out
