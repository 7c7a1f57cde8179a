"""Errors as RFC 9457 problem+json, for every route and every status."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response

TITLES = {
    400: "The body cannot be read",
    401: "No valid API key",
    403: "The key may not do this",
    404: "There is no such resource",
    405: "The method is not allowed here",
    408: "The body took too long",
    413: "The request is too large",
    415: "The body is not JSON",
    422: "The request does not fit the contract",
    429: "Too many requests",
    500: "The service failed",
    503: "The service is not ready",
}
MEDIA_TYPE = "application/problem+json"


#: An absolute path or a file's URI: in quotes, which may hold blanks, or up to the next blank.
QUOTED_PATH = re.compile(r"""(['"])(?:file:(?://)?)?/(?:(?!\1).)*?([^/'"]*)/?\1""")
BARE_PATH = re.compile(r"""(?<![\w./-])(?:file:(?://)?)?/+(?=\S)(?:[^\s/'"]+/+)*([^\s/'"]*)""")


def without_paths(text: str, *folders: Path) -> str:
    """A text for callers: files by their names only, since where they lie is nobody's business who has no key.

    ``folders`` are known ones, whose names may hold blanks.
    """
    for folder in folders:
        text = text.replace(f"{folder}/", "/")
    return BARE_PATH.sub(r"\1", QUOTED_PATH.sub(r"\1\2\1", text))


class FieldError(BaseModel):
    field: str = Field(description="where in the request, like rows.3.floor_area_sqm")
    reason: str


class Problem(BaseModel):
    """RFC 9457. ``errors`` names each field at fault."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str = ""
    errors: list[FieldError] = []


class ProblemError(Exception):
    """Ends a request with a problem+json answer."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, list(errors), dict(headers or {})


def problem(error: ProblemError, request_id: str) -> Response:
    """The answer to a request that failed."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": TITLES.get(error.status, "Error"),
        "status": error.status,
        "detail": error.detail,
        "request_id": request_id,
    }
    if error.errors:
        content["errors"] = error.errors
    return Response(
        json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"),
        status_code=error.status,
        media_type=MEDIA_TYPE,
        headers=error.headers,
    )
