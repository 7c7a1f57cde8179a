"""The gate for files of later prices: which measures such a file must keep before it is loaded.

Limits are those of landed files (``landing`` in the contract). What becomes of each row of a file that passes is
decided in ``dagster_project/raw/actuals.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from expectations.raw_file import MISSING_COLUMNS, ROWS, empty, implausible, span
from expectations.runner import Rule
from ml.contract import Column, Contract
from ml.warehouse import quoted

OBSERVATION_ID, PRICE, REPORTED_AT, SOURCE = "observation_id", "price", "reported_at", "source"

#: Where a price may come from. ``landed`` is what stood in the row itself.
SOURCES = ("reported", "online", "simulated")

#: A time with an offset from UTC; without one it is UTC.
OFFSET = r":\d\d(\.\d+)?\s*(Z|[+-]\d\d(:?\d\d)?)$"


def columns(contract: Contract) -> Contract:
    """The contract of such a file, as far as reading it needs one: key, price, when and where from."""
    price = next(c for c in contract.columns if c.name == contract.price)
    keys = [c for c in contract.columns if c.name in contract.key and c.source]
    texts = [
        Column(name=name, source=name, type="text", role="ignore") for name in (OBSERVATION_ID, REPORTED_AT, SOURCE)
    ]
    short = [price.model_copy(update={"source": PRICE})] if price.source != PRICE else []
    return contract.model_copy(update={"columns": [*keys, *texts, price, *short]})


def key_headers(contract: Contract) -> list[str]:
    """Headers of the natural key; none where a part of it is derived from other columns."""
    sources = [c.source for c in contract.columns if c.name in contract.key]
    return [s for s in sources if s] if all(sources) else []


def price_headers(contract: Contract) -> list[str]:
    """Headers that may hold the price, best first."""
    found = [c.source for c in contract.columns if c.name == contract.price and c.source]
    return list(dict.fromkeys([*found, PRICE]))


def absent(contract: Contract, headers: Sequence[str]) -> list[str]:
    """What a file with these headers lacks: an observation_id or the whole key, and a price."""
    keys = key_headers(contract)
    lacking = [] if OBSERVATION_ID in headers or (keys and set(keys) <= set(headers)) else [OBSERVATION_ID]
    return lacking + ([] if set(price_headers(contract)) & set(headers) else [PRICE])


def rules(contract: Contract) -> list[Rule]:
    """All expectations on a file of later prices. Names are stable: they become asset checks."""
    limits = contract.landing
    column = next(c for c in contract.columns if c.name == contract.price)
    named = [OBSERVATION_ID, *([", ".join(keys)] if (keys := key_headers(contract)) else [])]
    found = [
        Rule(ROWS, "a file holds at least one row", minimum=1, measure="count(*)"),
        Rule(
            MISSING_COLUMNS,
            "a file has an observation_id or the whole key, and a price",
            maximum=0,
            remedy=f"a row is named by {' or by '.join(named)}, its price is {' or '.join(price_headers(contract))}",
        ),
        empty("missing_observation_id", (OBSERVATION_ID,), limits.max_missing_key_share),
    ]
    if keys:
        found.append(empty("missing_key", tuple(keys), limits.max_missing_key_share))
    for number, header in enumerate(price_headers(contract)):
        text, suffix = quoted(header), f"_{number}" if number else ""
        found += [
            Rule(
                f"unparsable__price{suffix}",
                f"{header!r} is not a number",
                maximum=limits.max_unparsable_share,
                bad=f"not coalesce(isfinite(try_cast({text} as double)), false)",
                columns=(header,),
            ),
            Rule(
                f"implausible__price{suffix}",
                f"{header!r} is outside {span(column)}",
                maximum=limits.max_implausible_share,
                bad=implausible(header, column),
                columns=(header,),
            ),
        ]
    at, source = quoted(REPORTED_AT), quoted(SOURCE)
    return [
        *found,
        Rule(
            "unparsable__reported_at",
            f"{REPORTED_AT!r} is not a time like 2024-01-31 or 2024-01-31T12:00:00Z",
            maximum=limits.max_unparsable_share,
            bad=f"coalesce(trim({at}), '') <> '' and {utc(at)} is null",
            columns=(REPORTED_AT,),
        ),
        Rule(
            "unknown_source",
            f"{SOURCE!r} is none of {', '.join(SOURCES)}",
            maximum=0,
            bad=f"coalesce(trim({source}), '') not in ('', {', '.join(repr(s) for s in SOURCES)})",
            columns=(SOURCE,),
        ),
    ]


def utc(text: str) -> str:
    """SQL of a time given as text, in UTC without zone; null where it is none."""
    text = f"trim({text})"
    return (
        f"case when regexp_matches({text}, '{OFFSET}') then timezone('UTC', try_cast({text} as timestamptz)) "
        f"else try_cast({text} as timestamp) end"
    )
