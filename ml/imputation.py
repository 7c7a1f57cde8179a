"""Medians in the place of values that a model has never learned to do without, and how unsure a price is for it.

Where no value was missing in training, trees send a missing one to whichever side their splits default to: hdb's homes
without a storey were priced 12.9 % off in the median, with the median storey 3.9 % (docs/experiments.md, 2026-12-01).
A feature that is missing more often is left alone: trees learned from such rows what that means. This file travels
inside the bundle: numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

#: Share of training rows without a value from which on trees know what to do: from 0.03 % on they were as good on hdb.
RARE = 0.001
#: Evaluation rows that tell what a missing value costs.
SAMPLE = 500
BLOCK = 65_536  # rows looked at together, so that memory does not grow with the data


@dataclass(frozen=True)
class Imputation:
    """By feature, in their order."""

    medians: np.ndarray
    """float32, shape (features,)"""
    unless: np.ndarray
    """bool, shape (features, features): the median of the first takes its place unless the second is missing, too"""
    log_errors: np.ndarray
    """float64, shape (features,): mean absolute change of the log of the price when the median takes a value's place"""

    @classmethod
    def of(cls, x: np.ndarray, medians: Sequence[float]) -> Imputation:
        """From training rows of shape (n, features) and the medians of their features; ``measured`` adds the errors."""
        features = x.shape[1]
        alone = np.zeros((features, features))
        for i in range(0, len(x), BLOCK):
            missing = np.isnan(x[i : i + BLOCK]).astype(np.float32)
            # the diagonal counts the rows without the feature, whatever else they lack
            alone += missing.T @ (1 - missing) + np.diag(missing.sum(axis=0))
        return cls(np.array(medians, dtype=np.float32), alone < RARE * len(x), np.zeros(features))

    @classmethod
    def none(cls, features: int) -> Imputation:
        """Of a version of an earlier release: its trees did what they could."""
        return cls(np.zeros(features, np.float32), np.zeros((features, features), dtype=bool), np.zeros(features))

    def measured(self, x: np.ndarray, predict: Callable[[np.ndarray], np.ndarray]) -> Imputation:
        """With the errors that medians cause in a sample of rows, shape (n, features); ``predict`` gives logs."""
        sample = x[:: max(1, -(-len(x) // SAMPLE))]
        before = predict(sample)
        log_errors = np.zeros(x.shape[1])
        for j in np.flatnonzero(self.unless.any(axis=1)):
            known = ~np.isnan(sample[:, j])
            if known.any():
                without = sample[known]
                without[:, j] = self.medians[j]
                log_errors[j] = np.abs(predict(without).astype(np.float64) - before[known]).mean()
        return replace(self, log_errors=log_errors)

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

        Errors of several features add up as those of independent ones.
        """
        return np.sqrt(filled @ np.square(self.log_errors))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        unless = [np.flatnonzero(others).tolist() for others in self.unless]
        return {"medians": self.medians.tolist(), "unless": unless, "log_errors": self.log_errors.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Imputation:
        """What ``to_dict`` gave."""
        found = cls.none(len(values["medians"]))
        for i, others in enumerate(values["unless"]):
            found.unless[i, others] = True
        return cls(np.array(values["medians"], dtype=np.float32), found.unless, np.array(values["log_errors"]))
