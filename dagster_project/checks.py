"""Expectations as Dagster asset checks: one check a rule. The rules stand in ``expectations/``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import dagster as dg

from expectations.runner import ExpectationResult, Rule

SEVERITY = {"error": dg.AssetCheckSeverity.ERROR, "warn": dg.AssetCheckSeverity.WARN}


def check_specs(asset: dg.AssetKey, rules: Sequence[Rule]) -> list[dg.AssetCheckSpec]:
    """What Dagster has to know before anything runs."""
    return [
        dg.AssetCheckSpec(rule.name, asset=asset, description=f"{rule.description}: {rule.limit}") for rule in rules
    ]


def check_results(
    asset: dg.AssetKey, rules: Sequence[Rule], verdicts: Sequence[ExpectationResult]
) -> list[dg.AssetCheckResult]:
    """One result a rule over all subjects (files) of this run. Dagster wants every declared check in every run, so
    a rule that had nothing to judge passes and says so."""
    by_rule: dict[str, list[ExpectationResult]] = defaultdict(list)
    for verdict in verdicts:
        by_rule[verdict.expectation].append(verdict)
    return [_result(asset, rule, by_rule[rule.name]) for rule in rules]


def _result(asset: dg.AssetKey, rule: Rule, found: list[ExpectationResult]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=rule.name,
        passed=all(v.success for v in found),
        severity=SEVERITY[rule.severity],
        metadata={
            "limit": rule.limit,
            "judged": len(found),
            "worst": max((v.observed for v in found if v.observed is not None), default=0.0),
            "failed": [f"{v.subject}: {v.observed}" for v in found if not v.success][:20],
        },
    )
