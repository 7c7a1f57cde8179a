"""The gate: each requirement alone lets a version fail, and says so with its numbers."""

from __future__ import annotations

import pytest

from ml.contract import Gate
from ml.gate import judge

GOOD = {"n": 100.0, "mae": 20_000.0, "r2": 0.91, "mdape_pct": 4.0}


def pair(theirs: float, ours: float = 20_000.0, n: int = 100) -> dict[str, dict[str, float]]:
    return {"baseline": {"n": n, "mae": theirs}, "model": {"n": n, "mae": ours}}


def test_a_good_version_passes_and_every_comparison_is_a_sentence() -> None:
    verdict = judge(GOOD, {"persistence": pair(40_000), "linear": pair(30_000)}, Gate(min_r2=0.85, max_mdape_pct=5))
    assert verdict.passed
    assert verdict.reasons == []
    assert [c.sentence for c in verdict.comparisons] == [
        "R² on the eval window is 0.9100, 0.85 or more is required",
        "median error on the eval window in percent is 4.00, 5 or less is required",
        "mean absolute error is 20,000 against 40,000 of persistence on the same 100 rows",
        "mean absolute error is 20,000 against 30,000 of linear on the same 100 rows",
    ]


@pytest.mark.parametrize(
    ("metrics", "baselines", "reason"),
    [
        ({"r2": 0.84}, {}, "R² on the eval window is 0.8400, but 0.85 or more is required"),
        ({"mdape_pct": 5.01}, {}, "median error on the eval window in percent is 5.01, but 5 or less is required"),
        ({"r2": float("nan")}, {}, "R² on the eval window is unknown, 0.85 or more is required"),
        ({"mdape_pct": None}, {}, "median error on the eval window in percent is unknown, 5 or less is required"),
        (
            {},
            {"linear": pair(19_999)},
            "mean absolute error is 20,000 against 19,999 of linear on the same 100 rows, but must be smaller",
        ),
        # as good is not better
        (
            {},
            {"linear": pair(20_000)},
            "mean absolute error is 20,000 against 20,000 of linear on the same 100 rows, but must be smaller",
        ),
        # prices in millions
        (
            {},
            {"linear": pair(0.0021, ours=0.00234)},
            "mean absolute error is 0.00234 against 0.00210 of linear on the same 100 rows, but must be smaller",
        ),
        ({}, {"linear": pair(float("nan"))}, "the mean absolute error against linear is unknown"),
    ],
)
def test_each_requirement_alone_rejects(metrics: dict, baselines: dict, reason: str) -> None:
    verdict = judge({**GOOD, **metrics}, baselines, Gate(min_r2=0.85, max_mdape_pct=5))
    assert not verdict.passed
    assert verdict.reasons == [reason]


def test_a_limit_that_is_met_exactly_passes() -> None:
    assert judge({**GOOD, "r2": 0.85, "mdape_pct": 5.0}, {}, Gate(min_r2=0.85, max_mdape_pct=5)).passed


def test_a_baseline_is_compared_on_its_own_rows() -> None:
    # over all rows the model would lose: the baseline has easy rows only
    assert judge(GOOD, {"last_year": pair(15_000, ours=12_000, n=40)}, Gate()).passed


def test_a_baseline_without_rows_is_not_compared() -> None:
    verdict = judge(GOOD, {"last_year": {"baseline": {"n": 0}, "model": {"n": 0}}}, Gate())
    assert verdict.passed
    assert "too few to compare" in verdict.comparisons[-1].sentence


def test_baselines_do_not_count_where_the_contract_says_so() -> None:
    assert judge(GOOD, {"linear": pair(1.0)}, Gate(better_than_baselines=False)).passed


def test_a_baseline_counts_from_the_contracts_number_of_rows_on() -> None:
    # sparse data: last year's price was known for one row of 522, and the version was rejected over it
    assert judge(GOOD, {"last_year": pair(1.0, n=29)}, Gate(min_compared_rows=30)).passed
    assert not judge(GOOD, {"last_year": pair(1.0, n=30)}, Gate(min_compared_rows=30)).passed
