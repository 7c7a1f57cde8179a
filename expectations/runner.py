"""Runs a Great Expectations suite over profile rows: one row of measures per file or per scored month.

DuckDB measures all rows in one aggregate query, Great Expectations only judges the few resulting numbers, so a gate
costs the same for a thousand rows as for a million. Which rules there are stands in one module per gate
(``raw_file.py``, ``predictions.py``); what happens after a verdict belongs to whoever called.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ml.warehouse import quoted

if TYPE_CHECKING:
    import duckdb
    import great_expectations as gx

#: Measures of one subject by rule name; None where a rule does not apply.
Profile = dict[str, float | None]


@dataclass(frozen=True)
class Rule:
    """One expectation: a measure of many rows and the bounds it must keep."""

    name: str
    description: str
    minimum: float | None = None
    maximum: float | None = None
    bad: str | None = None
    """SQL condition of a row that breaks the rule; the measure is the share of such rows."""
    measure: str | None = None
    """SQL aggregate, for rules that are not about single rows. Neither: the caller supplies the number."""
    columns: tuple[str, ...] = ()
    """Columns the rule reads; where one is absent the rule does not apply."""
    severity: Literal["error", "warn"] = "error"
    remedy: str = "correct the file, or the limit in the contract"
    """What to do where a file breaks the rule."""

    @property
    def limit(self) -> str:
        bounds = [("≥", self.minimum), ("≤", self.maximum)]
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


@dataclass(frozen=True)
class ExpectationResult:
    """Verdict on one rule for one subject. ``observed`` is None when the rule did not apply."""

    subject: str
    expectation: str
    column: str | None
    observed: float | None
    limit: str
    success: bool
    severity: Literal["error", "warn"]
    description: str


class GateError(RuntimeError):
    """Great Expectations itself failed; the message says on which rule."""


def prepare() -> None:
    """Start importing Great Expectations, which takes seconds, beside other work: there will be something to judge."""
    threading.Thread(target=importlib.import_module, args=("expectations.lean_gx",), daemon=True).start()


def profile(
    connection: duckdb.DuckDBPyConnection, rules: Sequence[Rule], relation: str, columns: Collection[str] | None = None
) -> Profile:
    """Measure ``relation`` (a table or a subquery in parentheses) in one pass; ``columns`` are those it has."""
    measures = {rule.name: _measure(rule) for rule in rules if columns is None or set(rule.columns) <= set(columns)}
    measures = {name: sql for name, sql in measures.items() if sql}
    selected = ",\n".join(f"{sql} as {quoted(name)}" for name, sql in measures.items())
    row = connection.execute(f"select {selected} from {relation}").fetchone()
    assert row is not None  # an aggregate without groups always has a row
    return {rule.name: None for rule in rules} | dict(zip(measures, row, strict=True))


def run(rules: Sequence[Rule], profiles: dict[str, Profile]) -> list[ExpectationResult]:
    """Judge all profiles in one validation. Raises GateError when a rule could not be evaluated."""
    if not profiles:
        return []
    import pandas as pd

    # seconds, so only when there is something to judge; see prepare()
    from expectations.lean_gx import ProgressBarsConfig, gx

    frame = pd.DataFrame.from_dict(profiles, orient="index", columns=[r.name for r in rules], dtype="float64")
    frame = frame.rename_axis("subject").reset_index()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("profiles").add_dataframe_asset("profiles")
    batch = source.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    # whose fault it is costs Great Expectations as much again, and mostly it is nobody's
    validation = batch.validate(suite(rules), result_format="BOOLEAN_ONLY")
    if not validation.success:
        named = {"result_format": "COMPLETE", "unexpected_index_column_names": ["subject"]}
        validation = batch.validate(suite(rules), result_format=named)
    broken: set[tuple[str, str]] = set()
    for verdict in validation.results:
        name = verdict.expectation_config.kwargs["column"]  # pyright: ignore[reportOptionalMemberAccess]
        if verdict.exception_info and verdict.exception_info.get("raised_exception"):
            raise GateError(f"expectation {name} could not be evaluated: {verdict.exception_info['exception_message']}")
        broken |= {(row["subject"], name) for row in verdict.result.get("unexpected_index_list") or []}
    return [
        ExpectationResult(
            subject=subject,
            expectation=rule.name,
            column=", ".join(rule.columns) or None,
            observed=measures.get(rule.name),
            limit=rule.limit,
            success=(subject, rule.name) not in broken,
            severity=rule.severity,
            description=rule.description,
        )
        for subject, measures in profiles.items()
        for rule in rules
    ]


def suite(rules: Sequence[Rule]) -> gx.ExpectationSuite:
    """The rules as a Great Expectations suite over profile rows."""
    import great_expectations as gx
    from great_expectations.expectations.core.expect_column_values_to_be_between import (
        ExpectColumnValuesToBeBetween,
    )

    severities = {"error": "critical", "warn": "warning"}
    return gx.ExpectationSuite(
        name="profile",
        expectations=[
            ExpectColumnValuesToBeBetween(
                column=rule.name,
                min_value=rule.minimum,
                max_value=rule.maximum,
                severity=severities[rule.severity],  # pyright: ignore[reportArgumentType]
                description=rule.description,
            )
            for rule in rules
        ],
    )


def _measure(rule: Rule) -> str | None:
    return f"count_if({rule.bad}) / greatest(count(*), 1)" if rule.bad else rule.measure
