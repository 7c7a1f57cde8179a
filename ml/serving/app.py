"""The FastAPI application: its routes. What happens around and behind them is in the other modules."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from ml.contract import Contract, load
from ml.serving import journal
from ml.serving.bodies import Parsed, RowRefusedError, parse, prices
from ml.serving.metrics import Metrics
from ml.serving.middleware import DOCS, Gate
from ml.serving.openapi import document_of
from ml.serving.presented import merged, presented, reason_of
from ml.serving.problems import MEDIA_TYPE, TITLES, ProblemError, problem
from ml.serving.responses import (
    Accepted,
    BatchPredictions,
    Explanations,
    Health,
    ModelInfo,
    Predictions,
    Ready,
)
from ml.serving.schemas import Page, Schemas, schemas
from ml.serving.security import Guard
from ml.serving.service import BATCH_ROWS, Service
from ml.serving.settings import ApiSettings
from ml.settings import Settings

T = TypeVar("T")

#: Bodies beyond are read beside the event loop; a row has some hundred bytes.
LARGE_BODY = 64 * 1024


def create_app(settings: Settings, api: ApiSettings | None = None) -> FastAPI:
    """The application of one dataset. Nothing is loaded before it starts; until then ``/ready`` is 503."""
    api = api or ApiSettings()
    contract = load(settings.dataset)
    return build(settings, api, contract)


def build(settings: Settings, api: ApiSettings, contract: Contract) -> FastAPI:
    """``create_app`` for a contract that is at hand."""
    metrics, known = Metrics(), schemas(contract, api.max_rows)
    service = Service(settings, api, contract, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPIOffline(
        title=f"housing: {contract.title}",
        version="1",
        lifespan=lifespan,
        description=f"What a house is worth, how sure that is, and why. Prices are in {contract.currency}.",
        docs_url=DOCS,
        redoc_url=None,
        static_url=f"{DOCS}/static",
        separate_input_output_schemas=False,
    )
    app.state.service = service
    _routes(app, service, known)
    # FastAPI's own way to another document, though its types know of none
    app.openapi = document_of(app, service, known)  # type: ignore[method-assign]
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_middleware(Gate, api=api, guard=Guard(api), metrics=metrics)  # type: ignore[arg-type]
    return app


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": TITLES[status], "content": content} for status in (*statuses, 401, 403, 429, 503)}


def _routes(app: FastAPI, service: Service, known: Schemas) -> None:  # noqa: PLR0915 - one short function a route
    contract, api, metrics = service.contract, service.api, service.metrics
    failing = _problems(400, 408, 413, 415, 422)

    @app.post("/v1/predict", response_model=Predictions, responses=failing, summary="Prices of one row or many")
    async def predict(request: Request) -> Response:
        rows = await _answered(request, await _parsed(request), explain=False)
        return _json({"request_id": _id(request), "currency": contract.currency, "predictions": rows})

    @app.post(
        "/v1/predict/explain",
        response_model=Explanations,
        responses=failing,
        summary=f"Prices with contributions and comparable sales, up to {api.max_explained_rows} rows",
    )
    async def explain(request: Request) -> Response:
        parsed = await _parsed(request)
        if parsed.n > api.max_explained_rows:
            reason = {"field": "rows", "reason": f"at most {api.max_explained_rows} rows are explained at once"}
            raise ProblemError(422, f"{parsed.n:,} rows are too many for an explanation", [reason])
        rows = await _answered(request, parsed, explain=True)
        return _json({"request_id": _id(request), "currency": contract.currency, "predictions": rows})

    async def _parsed(request: Request) -> Parsed:
        body = await _body(request)
        try:
            return await _understood(parse, known, body)
        except RowRefusedError:  # of many rows, each is counted where it is answered
            metrics.refused.labels("invalid").inc()
            raise

    async def _answered(request: Request, parsed: Parsed, *, explain: bool) -> list[dict[str, Any]]:
        request.state.rows = parsed.n
        if not parsed.rows:
            metrics.refused.labels("invalid").inc(parsed.n)
            return merged(parsed, [])
        priced, first = await service.price(parsed.rows, _id(request))
        try:
            n = len(parsed.rows)
            for answers, part, _ in priced.of(first, n):
                metrics.count(answers, part)
                if parsed.single and (reasons := answers.reasons[part.start]):
                    raise ProblemError(422, f"there is no price: {'; '.join(reasons)}", [reason_of(r) for r in reasons])
            # many rows take long enough to hold up others
            work = (priced, first, parsed.places)
            rows = await asyncio.to_thread(presented, *work) if n > BATCH_ROWS else presented(*work)
            if explain:
                more = await service.explain(priced, first, n)
                for row, added in zip(rows, more, strict=True):
                    row.update(added)
        finally:
            service.release(priced.state)
        if parsed.errors:
            metrics.refused.labels("invalid").inc(len(parsed.errors))
        return merged(parsed, rows)

    @app.post(
        "/v1/feedback",
        status_code=202,
        response_model=Accepted,
        responses=failing,
        summary="Prices that came: acknowledged when they are on disk",
    )
    async def feedback(request: Request) -> Response:
        told = await _understood(prices, known, await _body(request))
        request.state.rows = len(told)
        await service.recorder.feedback(journal.actuals(told, datetime.now(UTC)))
        return _json({"request_id": _id(request), "accepted": len(told)}, 202)

    @app.get(
        "/v1/model-info",
        response_model=ModelInfo,
        responses=_problems(),
        summary="Which versions answer, how good they are, from when",
    )
    async def model_info() -> Response:
        state = service.state
        if state is None:
            raise ProblemError(503, service.problem or "the model is being loaded")
        engines = {"champion": state.champion, "challenger": state.challenger}
        versions = [
            {
                "alias": alias,
                "model_version": v.model_version,
                "trained_from": v.trained_from,
                "trained_through": v.trained_through,
                "created_at": v.created_at,
                "n_train": v.n_train,
                "eval": {name: getattr(v, f"eval_{name}") for name in ("mae", "rmse", "r2", "mdape_pct")}
                | {"n": v.n_eval},
                "features": e.bundle.features_used,
                "model_sha256": v.model_sha256,
                "data_fingerprint": v.data_fingerprint,
            }
            for alias, e in engines.items()
            if e is not None and (v := e.version)
        ]
        return _json(
            {
                "dataset": contract.name,
                "title": contract.title,
                "currency": contract.currency,
                "promotion": contract.promotion.mode,
                "versions": versions,
                "snapshot": _about(service),
            }
        )

    @app.get(
        "/v1/predictions",
        response_model=BatchPredictions,
        responses=_problems(422),
        summary="Predictions of the batch, paged",
    )
    async def predictions(wanted: Annotated[Page, Query()]) -> Response:
        month = wanted.month
        if month and month < "0001-01":
            raise ProblemError(422, "month 0000 is none", [{"field": "month", "reason": "is no month"}])
        filters = {
            "observation_id": wanted.observation_id,
            "month": date.fromisoformat(f"{month}-01") if month else None,
            "area": wanted.area,
            "model_version": wanted.model_version,
        }
        rows = await asyncio.to_thread(service.batch_predictions, filters, wanted.after, wanted.limit)
        more = f"{rows[-1]['observation_id']}:{rows[-1]['model_version']}" if len(rows) == wanted.limit else None
        return _json({"currency": contract.currency, "predictions": rows, "next": more})

    @app.get("/health", response_model=Health, summary="Whether the process lives")
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get(
        "/ready", response_model=Ready, responses=_problems(), summary="Whether prices can be given; 503 says why not"
    )
    async def ready() -> Response:
        state = service.state
        if state is None:
            raise ProblemError(503, service.problem or "the model is being loaded")
        limit = api.max_snapshot_age_h
        if limit and state.snapshot.age_s > limit * 3600:
            raise ProblemError(503, f"the snapshot is {state.snapshot.age_s / 3600:.1f} h old, allowed are {limit:g} h")
        return _json(
            {
                "status": "ready",
                "model_version": state.champion.version.model_version,
                "challenger": state.challenger.version.model_version if state.challenger else None,
                "snapshot": _about(service),
                "swap": {"state": "failed", "reason": service.problem}
                if service.problem
                else {"state": "ok", "reason": state.challenger_problem},
            }
        )

    @app.get("/metrics", summary="Prometheus", response_class=Response)
    async def prometheus() -> Response:
        state = service.state
        metrics.ready.set(0 if state is None else 1)
        if state:
            metrics.snapshot_age.set(state.snapshot.age_s)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _about(service: Service) -> dict[str, Any]:
    assert service.state is not None
    snapshot = service.state.snapshot
    return {
        "published_at": snapshot.published_at,
        "age_s": round(snapshot.age_s, 1),
        "fingerprint": snapshot.fingerprint,
        "newest_month": service.state.champion.month,
    }


def _json(content: Any, status: int = 200) -> Response:
    # what is no number becomes null; times of the warehouse are UTC and say so
    text = orjson.dumps(content, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)
    return Response(text, status_code=status, media_type="application/json")


def _id(request: Request) -> str:
    return request.state.request_id


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ProblemError(415, "send the body as application/json")
    return await request.body()


async def _understood(read: Callable[[Schemas, bytes], T], known: Schemas, body: bytes) -> T:
    """What a body says; many rows that are wrong in many ways take long enough to hold up others."""
    return await asyncio.to_thread(read, known, body) if len(body) > LARGE_BODY else read(known, body)


def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return problem(error, _id(request))


def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(ProblemError(error.status_code, str(error.detail), headers=error.headers), _id(request))


def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [{"field": ".".join(str(p) for p in e["loc"][1:])[:80], "reason": e["msg"]} for e in error.errors()]
    return problem(ProblemError(422, f"{len(errors)} parameters of the request", errors), _id(request))
