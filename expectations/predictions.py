"""The gate for outgoing predictions of one month and one model version. It warns, it never blocks.

What the errors of a model mean is decided by the ``monitoring`` models; this gate only asks whether what was written
can be a set of prices at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expectations.runner import ExpectationResult, Rule, profile, run
from ml.words import amount

if TYPE_CHECKING:
    import duckdb


def rules(
    rows_to_score: int,
    lowest_price: float,
    highest_price: float,
    *,
    max_null_share: float = 0.0,
    max_implausible_share: float = 0.01,
) -> list[Rule]:
    """Expectations on scored rows; the plausible range is given in the currency of the training prices."""
    price = "predicted_price"
    keys = "count(distinct struct_pack(a := observation_id, b := model_version))"
    return [
        Rule(
            "rows_without_prediction",
            f"exactly the {rows_to_score:,} rows to score have a row",
            minimum=0,
            maximum=0,
            measure=f"{rows_to_score} - count(*)",
            severity="warn",
        ),
        Rule(
            "duplicate_keys",
            "(observation_id, model_version) is unique",
            maximum=0,
            measure=f"count(*) - {keys}",
            severity="warn",
        ),
        Rule(
            "missing_price",
            "a prediction is empty or not a finite number",
            maximum=max_null_share,
            bad=f"coalesce(not isfinite({price}), true)",
            columns=(price,),
            severity="warn",
        ),
        Rule(
            "price_not_positive",
            "a prediction is zero or negative",
            maximum=0,
            bad=f"{price} <= 0",
            columns=(price,),
            severity="warn",
        ),
        Rule(
            "implausible_price",
            f"a prediction is outside {amount(lowest_price)}…{amount(highest_price)}",
            maximum=max_implausible_share,
            bad=f"isfinite({price}) and not {price} between {lowest_price!r} and {highest_price!r}",
            columns=(price,),
            severity="warn",
        ),
    ]


def check(
    connection: duckdb.DuckDBPyConnection, relation: str, subject: str, suite: list[Rule]
) -> list[ExpectationResult]:
    """Judge the scored rows of ``relation`` (a table or a subquery in parentheses) named ``subject``.

    ``relation`` has the columns observation_id, model_version and predicted_price.
    """
    return run(suite, {subject: profile(connection, suite, relation)})
