"""GET /openapi.json, generated from the routes and the `@describes` decorators of their handlers.

A handler's docstring is the operation's summary. The schemas are those of the models that validate requests and of the
TypedDicts that responses are typed with, so that no field is declared twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from service.api.keys import Access
from service.api.routes import Endpoint
from service.chat.errors import ErrorBody
from service.identity import Identity

__all__ = ["OpenApi", "describes"]

JSON = "application/json"
HEADERS = {
    "X-Model-Version": "version of the release that produced the response; a stream whose head was sent before that was"
    " known has it in its events alone",
    "X-Slot": "slot that produced the response",
    "X-Request-Id": "the request's X-Request-Id, or a generated one",
}

SECURITY_SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "Api-Key"},
}
SECURITY: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"x-api-key": []}, {"api-key": []}]
"""The operator decides whether there are API keys: {} is a request without one."""
ERRORS_OF_KEYS: dict[Access, tuple[int, ...]] = {"open": (), "metrics": (401, 403), "key": (401, 403, 429)}

H = TypeVar("H", bound=Callable[..., Any])
Shape = type | Mapping[str, Any]  # a pydantic model, a TypedDict, or a JSON schema


@dataclass(frozen=True)
class _Description:
    response: Shape
    response_type: str
    events: bool
    body: Shape | None
    body_type: str
    query: type[BaseModel] | None
    errors: tuple[int, ...]
    unavailable: Shape | None

    def shapes(self) -> Iterable[tuple[Shape, str]]:
        """All schemas of the operation, each with the mode that it is used in."""
        for shape, mode in (
            (self.body, "validation"),
            (self.response, "serialization"),
            (self.unavailable, "serialization"),
        ):
            if shape is not None:
                yield shape, mode


def describes(
    *,
    response: Shape,
    response_type: str = JSON,
    events: bool = False,
    body: Shape | None = None,
    body_type: str = JSON,
    query: type[BaseModel] | None = None,
    errors: Sequence[int] = (),
    unavailable: Shape | None = None,
) -> Callable[[H], H]:
    """Attach a description of request and responses to a handler.

    `response` is the shape of a 200, which is also available as a stream of events if `events` is set. `errors` are the
    statuses answered with an error object. `unavailable` is the shape of a 503 that is not an error object.
    """

    def decorate(handler: H) -> H:
        handler.described = _Description(  # type: ignore[attr-defined]
            response, response_type, events, body, body_type, query, tuple(errors), unavailable
        )
        return handler

    return decorate


class OpenApi:
    """The document of an application, generated on the first request and again when the version changes."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._text = b""
        self._version = ""

    @describes(response={"type": "object"})
    async def serve(self, request: Request) -> Response:
        """GET /openapi.json: this document."""
        if self._version != self._identity.version:
            self._version = self._identity.version
            self._text = json.dumps(document(request.app.routes, self._version)).encode()
        return Response(self._text, media_type=JSON)


def document(routes: Sequence[BaseRoute], version: str) -> dict[str, Any]:
    """Return the OpenAPI document; raises AttributeError for a route whose handler is not decorated."""
    operations = [(route, _described(route)) for route in routes if isinstance(route, Endpoint)]
    schemas = _Schemas([shape for _, described in operations for shape in described.shapes()])
    paths: dict[str, dict[str, Any]] = {}
    for route, described in operations:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _operation(route, path, described, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GLM",
            "version": version,
            "description": "The version is that of the serving release. A field of a request is obeyed, described as "
            "without effect on the answer, or refused with its name, as unknown ones are. "
            "A host may need API keys; send one, in one header.",
        },
        "security": SECURITY,
        "paths": paths,
        "components": {
            "schemas": schemas.definitions,
            "securitySchemes": SECURITY_SCHEMES,
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()},
        },
    }


def _described(route: Endpoint) -> _Description:
    described: _Description = route.endpoint.described  # type: ignore[attr-defined]
    return described


class _Schemas:
    """JSON schemas of shapes; those of types are under `#/components/schemas`."""

    def __init__(self, shapes: Iterable[tuple[Shape, str]]) -> None:
        adapters: dict[tuple[Any, str], Any] = {(ErrorBody, "serialization"): TypeAdapter(ErrorBody)}
        adapters |= {(shape, mode): TypeAdapter(shape) for shape, mode in shapes if isinstance(shape, type)}
        schemas, definitions = TypeAdapter.json_schemas(
            [(shape, mode, adapter) for (shape, mode), adapter in adapters.items()],  # type: ignore[misc]
            ref_template="#/components/schemas/{model}",
        )
        self.definitions: dict[str, Any] = definitions.get("$defs", {})
        self._schemas: dict[Any, Any] = schemas

    def content(self, shape: Shape, mode: str, media_type: str) -> dict[str, Any]:
        """Return the content object of a body."""
        return {media_type: {"schema": self._schemas[shape, mode] if isinstance(shape, type) else dict(shape)}}


def _operation(route: Endpoint, path: str, described: _Description, schemas: _Schemas) -> dict[str, Any]:
    summary = " ".join((route.endpoint.__doc__ or "").split())
    content = schemas.content(described.response, "serialization", described.response_type)
    if described.events:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = schemas.content(ErrorBody, "serialization", JSON)
    errors = sorted({*described.errors, *ERRORS_OF_KEYS[route.access]})
    responses = {"200": _response(200, content)} | {str(code): _response(code, error) for code in errors}
    if described.unavailable is not None:
        responses["503"] = _response(503, schemas.content(described.unavailable, "serialization", JSON))
    responses["default"] = _response(500, error) | {"description": "Any other error"}
    operation: dict[str, Any] = {"summary": summary, "operationId": route.name, "responses": responses}
    if route.access == "open":
        operation["security"] = []
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    if described.query is not None:
        properties = described.query.model_json_schema()["properties"]
        parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]
    if parameters:
        operation["parameters"] = parameters
    if described.body is not None:
        content = schemas.content(described.body, "validation", described.body_type)
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _response(status: int, content: Mapping[str, Any]) -> dict[str, Any]:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in HEADERS}
    return {"description": HTTPStatus(status).phrase, "headers": headers, "content": dict(content)}
