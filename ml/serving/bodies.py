"""Bodies of requests: JSON once read, rows checked by the types of ``schemas.py``, and what is wrong with each, told.

However wrong a body is, no more is made of its errors than is told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from ml.serving.problems import ProblemError
from ml.serving.schemas import Feedback, Schemas

#: Errors told of one request, and of one row among many; the first are enough to see what is wrong.
MAX_ERRORS = 50
MAX_ROW_ERRORS = 10


class RowRefusedError(ProblemError):
    """The only row of a request does not fit the contract."""


@dataclass(frozen=True)
class Parsed:
    """Rows of a request: the good ones with their places, and what is wrong with the others."""

    rows: list[dict[str, Any]]
    places: list[int]
    errors: dict[int, list[dict[str, str]]]
    n: int
    single: bool


def parse(known: Schemas, body: bytes) -> Parsed:
    """Rows of a body: ``{"rows": [...]}`` or one row. Raises ProblemError 400 or 422 where nothing can be priced."""
    found = _anything(body)
    if not _has_rows(found):
        row, faults = _checked(known.row, known.names, found)
        if faults:
            raise refused(faults, RowRefusedError)
        return Parsed([row], [0], {}, 1, True)
    rows = _rows(known, found)
    if (checked := _together(known, rows)) is not None:
        return Parsed(checked, list(range(len(checked))), {}, len(checked), False)
    good: list[dict[str, Any]] = []
    places: list[int] = []
    errors: dict[int, list[dict[str, str]]] = {}
    for i, given in enumerate(rows):
        row, faults = _checked(known.row, known.names, given)
        if faults:
            errors[i] = faults
        else:
            good.append(row)
            places.append(i)
    return Parsed(good, places, errors, len(rows), False)


def prices(known: Schemas, body: bytes) -> list[Feedback]:
    """Prices of a body: ``{"rows": [...]}`` or one. Raises ProblemError 400 or 422 when any of them is none."""
    found = _anything(body)
    many = _has_rows(found)
    out: list[Feedback] = []
    errors: list[dict[str, str]] = []
    for i, given in enumerate(_rows(known, found) if many else [found]):
        price, faults = _checked(known.price, Feedback.model_fields.keys(), given)
        place = f"rows.{i}." if many else ""
        errors += [{**fault, "field": f"{place}{fault['field']}"} for fault in faults]
        if len(errors) >= MAX_ERRORS:
            break
        out.append(price)
    if errors:
        raise refused(errors)
    return out


def _rows(known: Schemas, found: Any) -> list[Any]:
    """What stands in the rows of a body, whatever it is."""
    try:
        rows = known.any_rows.validate_python(found)["rows"]
    except ValidationError as error:
        raise refused(_told(error, "body")) from None
    if more := _unknown(found, {"rows"}):
        raise refused(more)
    return rows


def _together(known: Schemas, rows: list[Any]) -> list[dict[str, Any]] | None:
    """Rows as they were validated, all at once; None where any of them is wrong."""
    try:
        checked = known.rows.validate_python(rows)
    except ValidationError:
        return None
    return checked if all(row.keys() <= known.names for row in checked) else None


def _checked(adapter: TypeAdapter[Any], names: Collection[str], given: Any) -> tuple[Any, list[dict[str, str]]]:
    """A row as it was validated, or what is wrong with it."""
    unknown = _unknown(given, names)
    try:
        named = {name: given[name] for name in given if name in names} if isinstance(given, dict) else given
        return adapter.validate_python(named), unknown
    except ValidationError as error:
        return None, [*_told(error, "row"), *unknown][:MAX_ROW_ERRORS]


def _unknown(given: Any, names: Collection[str]) -> list[dict[str, str]]:
    """Errors of the first fields that are no columns."""
    found = (name for name in given if name not in names) if isinstance(given, dict) else ()
    # a name sent by the client may be anything
    return [{"field": name[:80], "reason": "is no field of the request"} for name in islice(found, MAX_ROW_ERRORS)]


def _anything(body: bytes) -> Any:
    # read once, then validated: errors of pydantic's own JSON each hold a copy of what they are about
    try:
        return from_json(body)
    except ValueError as error:
        raise ProblemError(400, f"the body is no JSON: {error}") from None


def _has_rows(found: Any) -> bool:
    """Whether the body is of many rows, wherever in it they stand; it is validated as that alone."""
    return isinstance(found, dict) and "rows" in found


def _told(error: ValidationError, whole: str) -> list[dict[str, str]]:
    """Fields and reasons; what is wrong with the ``whole`` has no field."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [{"field": _place(e["loc"]) or whole, "reason": e["msg"].removeprefix("Value error, ")} for e in found]


def refused(errors: Sequence[Mapping[str, str]], kind: type[ProblemError] = ProblemError) -> ProblemError:
    """422 with the first fields and reasons."""
    names = ", ".join(dict.fromkeys(e["field"] for e in errors[:5]))
    values = f"{len(errors)} value{'s' if len(errors) > 1 else ''}"
    return kind(422, f"{values} of the request: {names}", errors[:MAX_ERRORS])


def _place(parts: Sequence[int | str]) -> str:
    return ".".join(str(part)[:80] for part in parts)
