"""Whether a version may be promoted: its error on the eval window against the contract and the baselines.

A pure function over numbers. Thresholds stand in the contract; what follows from the verdict in ``ml/registry.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml.contract import Gate
from ml.words import amount


@dataclass(frozen=True)
class Comparison:
    """One requirement, as a sentence with the numbers in it."""

    sentence: str
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """All comparisons that were made; the version passes when each of them does."""

    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        return all(c.passed for c in self.comparisons)

    @property
    def reasons(self) -> list[str]:
        """Why the version is rejected; empty when it is not."""
        return [c.sentence for c in self.comparisons if not c.passed]


def judge(metrics: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Mapping[str, Any]]], gate: Gate) -> Verdict:
    """Compare a version with its gate.

    ``metrics`` are ``ml.evaluate.accuracy`` of the model on the eval window. ``baselines`` maps a name to
    ``{"baseline": accuracy, "model": accuracy}``, both on the rows for which that baseline has a price. An error
    that is not a number fails; a baseline with too few rows is not compared.
    """
    made = [_at_least("R² on the eval window", metrics["r2"], gate.min_r2)]
    if gate.max_mdape_pct is not None:
        made.append(_at_most("median error on the eval window in percent", metrics["mdape_pct"], gate.max_mdape_pct))
    if gate.better_than_baselines:
        made += [_better(name, pair["model"], pair["baseline"], gate) for name, pair in baselines.items()]
    return Verdict(tuple(made))


def _at_least(what: str, value: float | None, limit: float) -> Comparison:
    if value is None or not math.isfinite(value):
        return Comparison(f"{what} is unknown, {limit:g} or more is required", False)
    passed = bool(value >= limit)
    return Comparison(f"{what} is {value:.4f}, {'' if passed else 'but '}{limit:g} or more is required", passed)


def _at_most(what: str, value: float | None, limit: float) -> Comparison:
    if value is None or not math.isfinite(value):
        return Comparison(f"{what} is unknown, {limit:g} or less is required", False)
    passed = bool(value <= limit)
    return Comparison(f"{what} is {value:.2f}, {'' if passed else 'but '}{limit:g} or less is required", passed)


def _better(name: str, model: Mapping[str, Any], baseline: Mapping[str, Any], gate: Gate) -> Comparison:
    n = int(baseline["n"])
    if n < gate.min_compared_rows:
        few = f"{name} has a price for {n:,} rows of the eval window, too few to compare"
        return Comparison(f"{few} ({gate.min_compared_rows} are needed)", True)
    ours, theirs = model["mae"], baseline["mae"]
    if ours is None or theirs is None or not (math.isfinite(ours) and math.isfinite(theirs)):
        return Comparison(f"the mean absolute error against {name} is unknown", False)
    passed = bool(ours < theirs)
    return Comparison(
        f"mean absolute error is {amount(ours)} against {amount(theirs)} of {name} on the same {n:,} rows"
        + ("" if passed else ", but must be smaller"),
        passed,
    )
