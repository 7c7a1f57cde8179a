"""The gate for landed files: which measures a file must keep before it is loaded, derived from its contract.

Limits stand in the contract (``landing``), not here. Rows that break a rule in a file that passes are loaded and
labelled by the staging model, with the same meaning of "not a number" and "missing". Whether the file can be read at
all is decided before, in ``dagster_project/raw/structure.py``.
"""

from __future__ import annotations

from expectations.runner import Rule
from ml.contract import Column, Contract
from ml.warehouse import quoted

ROWS = "rows"
MISSING_COLUMNS = "missing_required_columns"


def rules(contract: Contract) -> list[Rule]:
    """All expectations on a file of this dataset. Their names are stable: they become asset checks."""
    limits = contract.landing
    landed = [(header, column) for header, column in contract.sources.items() if column.source]
    key = tuple(h for h, c in landed if c.name in contract.key and c.name != contract.observed_on)
    date = tuple(h for h, c in landed if c.name == contract.observed_on)
    found = [
        Rule(ROWS, "a file holds at least one row", minimum=1, measure="count(*)"),
        Rule(
            MISSING_COLUMNS,
            "a file has every required column",
            maximum=0,
            remedy="add what is missing, or make it optional in the contract",
        ),
    ]
    if key:
        found.append(empty("missing_key", key, limits.max_missing_key_share, what="the key"))
    if date:
        found.append(empty("missing_date", date, limits.max_missing_date_share, what="the date"))
    for header, column in landed:
        if column.type != "text":
            kind = f"a date like {column.format}" if column.type == "date" else "a number"
            found.append(
                Rule(
                    f"unparsable__{column.name}",
                    f"{header!r} is not {kind}",
                    maximum=limits.max_unparsable_share,
                    bad=_unparsable(header, column),
                    columns=(header,),
                    remedy="correct the file, or name what stands for a missing value there in the contract (missing)",
                )
            )
        if column.type == "number" and (column.min is not None or column.max is not None):
            found.append(
                Rule(
                    f"implausible__{column.name}",
                    f"{header!r} is outside {span(column)}",
                    maximum=limits.max_implausible_share,
                    bad=implausible(header, column),
                    columns=(header,),
                )
            )
    return found


def empty(name: str, headers: tuple[str, ...], limit: float, *, what: str = "") -> Rule:
    """Rule on rows in which one of the columns has no text; ``what`` the columns are, for a reader."""
    listed = ", ".join(repr(h) for h in headers)
    condition = " or ".join(f"coalesce(trim({quoted(h)}), '') = ''" for h in headers)
    named = f"{what} ({listed})" if what else listed
    return Rule(name, f"{named} is empty", maximum=limit, bad=condition, columns=headers)


# In both conditions the common case comes first: a file of a million rows has few rows that get past it.


def _unparsable(header: str, column: Column) -> str:
    text = quoted(header)
    if column.type == "date":
        readable = f"try_strptime(trim({text}), {_literal(column.format or '%Y-%m-%d')}) is not null"
    else:
        readable = f"isfinite(try_cast({text} as double))"
    no_value = ", ".join(_literal(v) for v in ["", *column.missing] if isinstance(v, str))
    return f"case when {readable} then false else trim({text}) not in ({no_value}) end"


def implausible(header: str, column: Column) -> str:
    """SQL condition of a number outside the contract's bounds."""
    number = f"try_cast({quoted(header)} as double)"
    sides = [f"{number} >= {column.min!r}"] if column.min is not None else []
    sides += [f"{number} <= {column.max!r}"] if column.max is not None else []
    no_value = [f"{number} <> {float(v)!r}" for v in column.missing if not isinstance(v, str)]
    outside = " and ".join([f"isfinite({number})", *no_value])
    return f"case when {' and '.join(sides)} then false else {outside} end"


def span(column: Column) -> str:
    """The bounds for a reader."""
    if column.min is None:
        return f"…{column.max:,g}"
    return f"{column.min:,g}…{column.max:,g}" if column.max is not None else f"{column.min:,g}…"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
