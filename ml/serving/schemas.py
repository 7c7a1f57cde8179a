"""Requests as pydantic types made from the dataset's contract: types, units, ranges, allowed values.

What a value means and whether a row can be priced is the bundle's SQL; here stands only what a client must send.
What it gets is ``responses.py``.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, create_model
from typing_extensions import TypedDict

from ml.contract import Column, Contract

#: No text of any data set comes near this.
MAX_TEXT = 500
#: Sales are agreed before they are registered, but not a year before.
FUTURE_DAYS = 366
#: Numbers beyond are typing errors, and squares of them would not be numbers.
MAX_NUMBER = 1e15

CONTROL = re.compile(r"[\x00-\x1f]")

#: How a strptime format looks, for the schema. Digits are ASCII: strptime takes others, which DuckDB does not read.
PATTERNS = {"%Y": "[0-9]{4}", "%m": "[0-9]{2}", "%d": "[0-9]{2}", "%b": "[A-Za-z]{3}", "%y": "[0-9]{2}"}


class Feedback(BaseModel):
    """A price that came. It becomes an actual with the next run."""

    model_config = ConfigDict(extra="forbid", strict=True)
    observation_id: str = Field(pattern=r"^[0-9a-f]{32}$", description="as in the prediction")
    price: float = Field(gt=0, allow_inf_nan=False)
    reported_at: str | None = Field(
        default=None, max_length=40, description="when it was known, ISO 8601; default: now", examples=["2024-02-01"]
    )


class Page(BaseModel):
    """Which predictions of the batch are wanted. A filter that is none is refused: it would filter nothing."""

    model_config = ConfigDict(extra="forbid")

    observation_id: str | None = Field(None, pattern="^[0-9a-f]{32}$")
    month: str | None = Field(None, pattern="^[0-9]{4}-(0[1-9]|1[0-2])$", examples=["2023-12"])
    area: str | None = Field(None, min_length=1, max_length=200)
    model_version: str | None = Field(None, pattern="^v[0-9]{1,9}$")
    limit: int = Field(100, ge=1, le=1_000)
    after: str | None = Field(None, pattern="^[0-9a-f]{32}:v[0-9]{1,9}$", description="`next` of the page before")


@dataclass(frozen=True)
class Schemas:
    """Validators of one dataset."""

    contract: Contract
    row: TypeAdapter[dict[str, Any]]
    rows: TypeAdapter[list[dict[str, Any]]]
    """of many; the first wrong one ends it"""
    any_rows: TypeAdapter[dict[str, Any]]
    price: TypeAdapter[Feedback]
    feedback: TypeAdapter[Any]
    """one price or many, for the document"""
    names: frozenset[str]
    """columns a row may have"""


def columns_of(contract: Contract) -> list[Column]:
    """Columns a request may have: what a file brings, but not the price nor what leaks it."""
    return [c for c in contract.columns if c.source is not None and c.role not in {"price", "leak"}]


def schemas(contract: Contract, max_rows: int) -> Schemas:
    """The types of a dataset's requests."""
    columns = columns_of(contract)
    row = _keyed(f"{contract.name}_row", {c.name: _field(contract, c) for c in columns})
    length = Field(min_length=1, max_length=max_rows)
    # all errors of all rows would be gigabytes; the first one says that rows are to be looked at one by one
    rows: Any = Annotated[list[row], Field(fail_fast=True)]
    known = _feedback(next(c for c in contract.columns if c.role == "price"))
    several = _keyed("many_prices", {"rows": Annotated[list[known], length]}, extra="forbid")
    told: Any = several | known
    return Schemas(
        contract,
        TypeAdapter(row),
        TypeAdapter(rows),
        TypeAdapter(_keyed("untyped_rows", {"rows": Annotated[list[Any], length]})),
        TypeAdapter(known),
        TypeAdapter(told),
        frozenset(c.name for c in columns),
    )


def _keyed(name: str, fields: dict[str, Any], extra: Literal["allow", "forbid"] = "allow") -> Any:
    """A dictionary with these keys: cheaper to make than an object, ten thousand times a request.

    Other keys are let through to ``bodies.py``: pydantic would make an error of each, however many there are.
    """
    made: Any = TypedDict(name, fields)  # type: ignore[misc,operator]
    made.__pydantic_config__ = ConfigDict(extra=extra)
    return made


def _feedback(price: Column) -> type[Feedback]:
    """Feedback whose price is one that the warehouse would learn from."""
    bounds = Field(
        ge=0 if price.min is None else price.min,
        le=MAX_NUMBER if price.max is None else price.max,
        allow_inf_nan=False,
        description=f"price paid, in {price.unit}" if price.unit else "price paid",
    )
    when = Annotated[str | None, Feedback.model_fields["reported_at"], AfterValidator(_moment)]
    return create_model("KnownPrice", __base__=Feedback, price=(float, bounds), reported_at=(when, None))


def _moment(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("is not a time by ISO 8601, for example 2024-02-01 or 2024-02-01T12:00:00Z") from None
    zoned = found if found.tzinfo else found.replace(tzinfo=dt.UTC)
    if zoned > dt.datetime.now(dt.UTC) + dt.timedelta(days=1):
        raise ValueError("lies in the future")
    try:
        utc = zoned.astimezone(dt.UTC)
    except OverflowError:
        raise ValueError("lies before the year 1") from None
    return utc.replace(tzinfo=None).isoformat(sep=" ", timespec="seconds")


def _field(contract: Contract, column: Column) -> Any:
    kind = _kind(contract, column)
    return kind if column.required else NotRequired[kind | None]


def _kind(contract: Contract, column: Column) -> Any:
    about = [column.description, f"unit: {column.unit}" if column.unit else ""]
    if column.type == "number":
        low, high = _limits(contract, column)
        about += [_treated(column)] if column.outside == "null" else []
        return Annotated[
            float, Field(ge=low, le=high, strict=True, allow_inf_nan=False, description=_joined(about)),
        ]  # fmt: skip
    if column.type == "date":
        # the document shows the pattern, and `_date` says in words what does not match it
        pattern = _pattern(column.format or "")
        described = Field(
            strict=True,
            max_length=40,
            description=_joined([*about, f"as {column.format}"]),
            json_schema_extra={"pattern": pattern} if pattern else None,
        )
        return Annotated[str, described, AfterValidator(_date(contract, column))]
    if column.values:
        allowed = tuple(dict.fromkeys([*column.values, *(m for m in column.missing if isinstance(m, str))]))
        return Annotated[Literal[allowed], Field(description=_joined(about))]  # type: ignore[valid-type]
    least = 1 if column.required else 0
    return Annotated[
        str,
        Field(strict=True, min_length=least, max_length=MAX_TEXT, description=_joined(about)),
        AfterValidator(_plain),
    ]


def _limits(contract: Contract, column: Column) -> tuple[float, float]:
    """Outside is refused: where the contract rejects the row, and below zero where nothing can be."""
    low, high = -MAX_NUMBER, MAX_NUMBER
    if column.outside == "reject":
        low, high = column.min if column.min is not None else low, column.max if column.max is not None else high
    if (column.min is not None and column.min >= 0) or column.name == contract.size:
        low = max(low, 0.0)
    return low, high


def _treated(column: Column) -> str:
    if column.min is None and column.max is None:
        return ""
    low, high = ("" if v is None else f"{v:g}" for v in (column.min, column.max))
    return f"outside {low}..{high} it is not used"


def _joined(parts: Sequence[str]) -> str:
    return "; ".join(p for p in parts if p)


def _plain(text: str) -> str:
    """Keys are joined by control characters, so none may stand inside one."""
    if text.isprintable() and not text.isspace():
        return text  # nearly every text, told in a fifth of the time
    if CONTROL.search(text):
        raise ValueError("holds a control character")
    if text and not text.strip():
        raise ValueError("is blank")
    return text


def _pattern(date_format: str) -> str | None:
    """A regular expression for the schema, where every part of the format is known."""
    out, rest = "", date_format
    while rest:
        if rest[:2] in PATTERNS:
            out, rest = out + PATTERNS[rest[:2]], rest[2:]
        elif rest[0] == "%":
            return None
        else:
            out, rest = out + re.escape(rest[0]), rest[1:]
    return f"^{out}$"


def _date(contract: Contract, column: Column) -> Callable[[str], str]:
    pattern = re.compile(_pattern(column.format or "") or ".*", re.DOTALL)
    like = f"is no date as {column.format}, like {dt.date(2023, 12, 31).strftime(column.format or '%Y-%m-%d')}"

    @functools.lru_cache(4_096)  # the rows of a request have few dates, and strptime is slow
    def problem(text: str, today: dt.date) -> str | None:
        try:
            text.encode("ascii")  # an error of it is a ValueError as well
            if not pattern.fullmatch(text):
                return like
            found = dt.datetime.strptime(text, column.format or "%Y-%m-%d").date()
        except ValueError:
            return like
        if column.name != contract.observed_on:
            return None
        last = today + dt.timedelta(days=FUTURE_DAYS)
        if found > last:
            return f"lies more than a year in the future (after {last})"
        if found < dt.date.fromisoformat(f"{contract.first_month}-01"):
            return f"lies before the first month of the data ({contract.first_month})"
        return None

    def check(text: str) -> str:
        if found := problem(text, dt.datetime.now(dt.UTC).date()):
            raise ValueError(found)
        return text

    return check


def request_schema(known: Schemas, example: Mapping[str, Any] | None, max_rows: int) -> dict[str, Any]:
    """JSON schema of a request's body for the OpenAPI document, with a worked example."""
    row = known.row.json_schema(ref_template="#/components/schemas/{model}")
    row.pop("$defs", None)
    row["additionalProperties"] = False
    other = {"title": "Not a row", "description": "answered by an error entry in its place"}
    rows = {"type": "array", "minItems": 1, "maxItems": max_rows, "items": {"anyOf": [row, other]}}
    many = {
        "type": "object",
        "title": "Rows",
        "additionalProperties": False,
        "required": ["rows"],
        "properties": {"rows": rows},
    }
    out: dict[str, Any] = {"schema": {"anyOf": [row, many]}}
    if example:
        out["examples"] = {
            "one row": {"value": dict(example)},
            "several rows": {"value": {"rows": [dict(example), dict(example)]}},
        }
    return out


def feedback_examples(contract: Contract) -> dict[str, Any]:
    """Worked examples of known prices; of no home, so that trying one out tells nothing false."""
    price = next(c for c in contract.columns if c.role == "price")
    usual = min(max(300_000.0, price.min or 0.0), price.max or MAX_NUMBER)
    one = {"observation_id": "0123456789abcdef" * 2, "price": usual, "reported_at": "2024-02-01"}
    other = {"observation_id": "fedcba9876543210" * 2, "price": usual}
    return {"one price": {"value": one}, "several prices": {"value": {"rows": [one, other]}}}
