"""What pydantic found wrong, as sentences for those who wrote it: where, what, what is allowed.

Which values are legal stands with the models (``ml/contract.py``, ``ml/settings.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

Place = tuple[int | str, ...]


def refusals(error: ValidationError, named: Callable[[Place], str]) -> str:
    """All problems in one line. ``named`` tells a reader where a value stands; empty for the whole."""
    found = error.errors(include_url=False)
    return "; ".join(": ".join(filter(None, (named(e["loc"]), _reason(e)))) for e in found)


def _reason(e: Any) -> str:
    if e["type"] == "value_error":  # a sentence of our own
        return str(e["ctx"]["error"])
    if e["type"] == "missing":
        return "is missing; add it"
    asked = re.sub(r"^(Input|String|List|Tuple|Value) should ", "must ", e["msg"])
    return f"{asked} (got {str(e['input'])[:60]!r})"


def place_in(document: Any, place: Place) -> str:
    """``columns.rooms.type``: entries of a list are told by their name where they have one."""
    words = []
    for part in place:
        inside: Any = dict(enumerate(document)) if isinstance(document, list) else document
        document = inside.get(part) if isinstance(inside, dict) else None
        named = document.get("name") if isinstance(part, int) and isinstance(document, dict) else None
        words.append(str(part if named is None else named))
    return ".".join(words)
