"""Around every request of the API: its id, key, limits, time, log line and metrics; errors become problem+json."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml.serving.metrics import Metrics
from ml.serving.problems import ProblemError, problem
from ml.serving.security import HEADERS, Guard
from ml.serving.settings import ApiSettings

log = logging.getLogger("housing.api")

REQUEST_ID = re.compile(r"^[\w.-]{1,64}$")
#: What a caller needs to be allowed.
SCOPES = {
    "/v1/predict": "predict",
    "/v1/predict/explain": "predict",
    "/v1/model-info": "predict",
    "/v1/predictions": "predict",
    "/v1/feedback": "feedback",
    "/metrics": "admin",
}
#: The page of the document, what it loads, and that it loads from nowhere else; FastAPI's script stands in the page.
DOCS = "/docs"
DOCS_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'"
)
#: Open to whoever can connect. A path that stands in neither is none: what a route matches may be more than its name
#: (Starlette takes `/v1/predict` with a line end behind it), and what is not named must not be open.
OPEN = frozenset(
    {"/health", "/ready", "/openapi.json", DOCS, f"{DOCS}/oauth2-redirect"} | {f"{DOCS}/static/{f}" for f in DOCS_FILES}
)


class Gate:
    """Around every request: its id, key, limits, time, log line and metrics. Errors become problem+json."""

    def __init__(self, app: ASGIApp, api: ApiSettings, guard: Guard, metrics: Metrics) -> None:
        self._app, self._api, self._guard, self._metrics = app, api, guard, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.match(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"], state["rows"] = request_id, 0
        status, began, caller = 500, False, "-"

        async def sending(message: Message) -> None:
            nonlocal status, began
            if message["type"] == "http.response.start":
                status, began = message["status"], True
                own = {**HEADERS, "x-request-id": request_id}
                if scope["path"] == DOCS:
                    own["content-security-policy"] = DOCS_POLICY
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in own.items())]
            await send(message)

        self._metrics.in_flight.inc()
        try:
            async with asyncio.timeout(self._api.request_timeout_s):
                if scope["path"] not in SCOPES and scope["path"] not in OPEN:
                    raise ProblemError(404, "see /docs for the routes there are")
                # known before anything is refused, so that the log says who was
                caller, key = self._guard.caller(headers, SCOPES.get(scope["path"]))
                self._guard.admit(key, SCOPES.get(scope["path"]))
                body = await self._read(headers, receive)
                await self._app(scope, _once(body, receive), sending)
        except ProblemError as error:
            await problem(error, request_id)(scope, receive, sending)
        except TimeoutError:
            if not began:
                late = ProblemError(503, f"the request took longer than {self._api.request_timeout_s:g} s")
                await problem(late, request_id)(scope, receive, sending)
        except ClientGoneError:
            status = 499
        except Exception:  # whatever it is, the caller gets an answer and the log its reason
            log.exception("a request failed", extra={"request_id": request_id})
            if not began:
                failed = ProblemError(500, "the service failed; its log has the reason under the request id")
                await problem(failed, request_id)(scope, receive, sending)
        finally:
            self._metrics.in_flight.dec()
            took = time.perf_counter() - started
            # never a path that somebody made up
            route = scope["path"] if scope["path"] in SCOPES or scope["path"] in OPEN else "other"
            self._metrics.requests.labels(scope["method"], route, status).inc()
            self._metrics.seconds.labels(route).observe(took)
            line = {"method": scope["method"], "route": route, "status": status, "ms": round(1000 * took, 1)}
            log.info("request", extra={**line, "request_id": request_id, "rows": state["rows"], "caller": caller})

    async def _read(self, headers: dict[str, str], receive: Receive) -> bytes:
        limit = self._api.max_body_bytes
        too_large = ProblemError(
            413, f"a body may have {limit:,} bytes; send fewer rows at once", headers={"Connection": "close"}
        )
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        if declared in ("", "0") and "transfer-encoding" not in headers:
            return b""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._api.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            late = f"the body took longer than {self._api.body_timeout_s:g} s"
            raise ProblemError(408, late, headers={"Connection": "close"}) from None


class ClientGoneError(Exception):
    """The client hung up before it had sent its body."""


def _once(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    given = False

    async def again() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again
