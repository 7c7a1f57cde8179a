"""The OpenAPI document: bodies made from the contract, with an example that the snapshot can price."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from ml.serving.middleware import SCOPES
from ml.serving.problems import Problem
from ml.serving.schemas import Schemas, feedback_examples, request_schema
from ml.serving.service import Service


def document_of(app: FastAPI, service: Service, known: Schemas) -> Callable[[], dict[str, Any]]:
    """The document, with bodies made from the contract and an example that the snapshot can price."""
    made: dict[str, tuple[object, dict[str, Any]]] = {}

    def openapi() -> dict[str, Any]:
        state = service.state
        if "document" in made and made["document"][0] is state:
            return made["document"][1]
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        limits = {"/v1/predict": service.api.max_rows, "/v1/predict/explain": service.api.max_explained_rows}
        for path, most in limits.items():
            body = request_schema(known, state.example if state else None, most)
            document["paths"][path]["post"]["requestBody"] = {"required": True, "content": {"application/json": body}}
        told = known.feedback.json_schema(ref_template="#/components/schemas/{model}")
        components = document.setdefault("components", {}).setdefault("schemas", {})
        components |= told.pop("$defs", {})
        document["paths"]["/v1/feedback"]["post"]["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": told, "examples": feedback_examples(known.contract)}},
        }
        shape = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= shape.pop("$defs", {})
        components["Problem"] = shape
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for path, scope in SCOPES.items():
            for operation in document["paths"][path].values():
                operation["security"] = [{}, {"bearer": []}, {"key": []}]
                operation["description"] = f"Needs a key with the scope `{scope}` where keys are set."
        made["document"] = (state, document)
        return document

    return openapi
