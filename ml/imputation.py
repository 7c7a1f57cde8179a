"""Medians in the place of values that a model has never learned to do without, and how unsure a price is for it.

Where no value was missing in training, trees send a missing one to whichever side their splits default to: hdb's homes
without a storey were priced 12.8 % off in the median, with the median storey 3.6 % (docs/experiments.md, 2026-12-01).
A feature that is missing more often is left alone: trees learned from such rows what that means. This file travels
inside the bundle: numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ml.baselines import BLOCK

#: Rows without a value from which on trees know what to do: with 34 of 115,491 they were nearly as good as the median
#: on hdb, with 9 of 2,015 of the HouseTS sample much worse (docs/experiments.md, 2026-12-01). Of many rows a share, of
#: few rows no more than another.
FEW, RARE, MOST = 30, 0.001, 0.05
#: Rows that tell what a missing value costs.
SAMPLE = 500


@dataclass(frozen=True)
class Imputation:
    """By feature, in their order."""

    medians: np.ndarray
    """float32, shape (features,)"""
    unless: np.ndarray
    """bool, shape (features, features): the median of the first takes its place unless the second is missing, too"""
    log_errors: np.ndarray
    """float64, shape (features,): mean absolute change of the log of the price when the median takes a value's place"""
    together: float = 1.0
    """The same of all features that are always filled in at once, as a multiple of the root of its summed squares"""

    @classmethod
    def of(cls, x: np.ndarray, medians: Sequence[float]) -> Imputation:
        """From training rows of shape (n, features) and the medians of their features; ``measured`` adds the errors."""
        features = x.shape[1]
        alone, there = np.zeros((features, features)), np.zeros(features)
        for i in range(0, len(x), BLOCK):
            missing = np.isnan(x[i : i + BLOCK]).astype(np.float32)
            alone += missing.T @ (1 - missing)
            there += (1 - missing).sum(axis=0)
        # what few rows have tells nothing of what is missing beside it
        unless = (alone < _few(there)) & (there >= FEW / MOST)
        np.fill_diagonal(unless, (len(x) - there < _few(np.float64(len(x)))) & (there > 0))
        return cls(np.array(medians, dtype=np.float32), unless, np.zeros(features))

    @classmethod
    def none(cls, features: int) -> Imputation:
        """Of a version of an earlier release: its trees did what they could."""
        return cls(np.zeros(features, np.float32), np.zeros((features, features), dtype=bool), np.zeros(features))

    def measured(self, x: np.ndarray, predict: Callable[[np.ndarray], np.ndarray]) -> Imputation:
        """With the errors that medians cause in a sample of whole rows (n, features); ``predict`` gives logs."""
        sample = x[:: max(1, -(-len(x) // SAMPLE))]
        before = predict(sample).astype(np.float64)

        def change(features: np.ndarray) -> float:
            known = ~np.isnan(sample[:, features]).any(axis=1)
            if not known.any():
                return 0.0
            without = sample[known]
            without[:, features] = self.medians[features]
            return float(np.abs(predict(without) - before[known]).mean())

        log_errors = np.zeros(x.shape[1])
        for j in np.flatnonzero(self.unless.any(axis=1)):
            log_errors[j] = change(np.array([j]))
        always = np.flatnonzero(np.diag(self.unless))
        apart = np.sqrt(np.square(log_errors[always]).sum())
        return replace(self, log_errors=log_errors, together=max(1.0, change(always) / apart) if apart else 1.0)

    def fill(self, x: np.ndarray) -> np.ndarray:
        """Put medians into rows of shape (n, features), in place; returns where, bool of that shape."""
        filled = np.zeros(x.shape, dtype=bool)
        unless = self.unless.T.astype(np.float32)
        for i in range(0, len(x), BLOCK):
            block, where = x[i : i + BLOCK], filled[i : i + BLOCK]
            missing = np.isnan(block)
            if missing.any():
                # what is missing is missing itself, so the diagonal has to be asked for
                there = (~missing).astype(np.float32) @ unless > 0
                np.logical_and(missing, there | np.diag(self.unless), out=where)
                np.copyto(block, self.medians, where=where)
        return filled

    def error(self, filled: np.ndarray) -> np.ndarray:
        """Mean absolute error of the log of each row's price that comes from what ``fill`` did, shape (n,).

        Errors of few features add up as those of independent ones. Features that stand in for each other cost more
        together: ``together`` times as much where all are missing, and by their share of the squares where some are.
        """
        squared = np.square(self.log_errors)
        found, of_all = filled @ squared, squared[np.diag(self.unless)].sum()
        share = np.minimum(1, found / of_all) if of_all else 0.0
        return np.sqrt(found) * (1 + (self.together - 1) * share)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        unless = [np.flatnonzero(others).tolist() for others in self.unless]
        return {
            "medians": self.medians.tolist(),
            "unless": unless,
            "log_errors": self.log_errors.tolist(),
            "together": self.together,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Imputation:
        """What ``to_dict`` gave."""
        found = cls.none(len(values["medians"]))
        for i, others in enumerate(values["unless"]):
            found.unless[i, others] = True
        medians, log_errors = np.array(values["medians"], dtype=np.float32), np.array(values["log_errors"])
        return cls(medians, found.unless, log_errors, values["together"])


def _few(rows: Any) -> Any:
    """Missing values among so many rows of which trees learn nothing."""
    return np.minimum(np.maximum(FEW, RARE * rows), MOST * rows)
