"""GET /openapi.json, made from the routes and what `@describes` says at their handlers.

A handler's docstring is its description; the models that check its request and the shapes of its answer are the
schemas. No field is written down a second time.
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
from starlette.routing import BaseRoute, Route

from service.chat.errors import ErrorBody
from service.identity import Identity

__all__ = ["OpenApi", "describes"]

JSON = "application/json"
HEADERS = {
    "X-Model-Version": "the version of the release that answered",
    "X-Slot": "the slot that answered",
    "X-Request-Id": "the client's own, or one that was made for the request",
}

H = TypeVar("H", bound=Callable[..., Any])
Shape = type | Mapping[str, Any]  # a model, a TypedDict, or JSON schema as it is


@dataclass(frozen=True)
class _Description:
    answer: Shape
    answer_type: str
    events: bool
    body: Shape | None
    body_type: str
    query: type[BaseModel] | None
    errors: tuple[int, ...]
    unwell: Shape | None

    def shapes(self) -> Iterable[tuple[Shape, str]]:
        """All schemas that the operation needs, each as it is read or as it is written."""
        for shape, mode in ((self.body, "validation"), (self.answer, "serialization"), (self.unwell, "serialization")):
            if shape is not None:
                yield shape, mode


def describes(
    *,
    answer: Shape,
    answer_type: str = JSON,
    events: bool = False,
    body: Shape | None = None,
    body_type: str = JSON,
    query: type[BaseModel] | None = None,
    errors: Sequence[int] = (),
    unwell: Shape | None = None,
) -> Callable[[H], H]:
    """Say at a handler what it takes and gives.

    `answer` is the shape of a 200, `events` whether that may be a stream of events too, `unwell` the shape of a 503
    that is no error object, and `errors` are the other statuses that are.
    """

    def note(handler: H) -> H:
        handler.described = _Description(  # type: ignore[attr-defined]
            answer, answer_type, events, body, body_type, query, tuple(errors), unwell
        )
        return handler

    return note


class OpenApi:
    """The document of an application; made when it is first asked for, and for each version anew."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._text = b""
        self._version = ""

    @describes(answer={"type": "object"})
    async def serve(self, request: Request) -> Response:
        """GET /openapi.json: this document."""
        if self._version != self._identity.version:
            self._version = self._identity.version
            self._text = json.dumps(document(request.app.routes, self._version)).encode()
        return Response(self._text, media_type=JSON)


def document(routes: Sequence[BaseRoute], version: str) -> dict[str, Any]:
    """Describe the routes; raises AttributeError for one whose handler says nothing of itself."""
    operations = [(route, _described(route)) for route in routes if isinstance(route, Route)]
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
            "description": "The version is that of the release that answers. Fields of requests that are not "
            "described here are ignored.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.definitions,
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()},
        },
    }


def _described(route: Route) -> _Description:
    found: _Description = route.endpoint.described  # type: ignore[attr-defined]
    return found


class _Schemas:
    """JSON schemas of shapes, those that are types under `#/components/schemas`."""

    def __init__(self, shapes: Iterable[tuple[Shape, str]]) -> None:
        wanted: dict[tuple[Any, str], Any] = {(ErrorBody, "serialization"): TypeAdapter(ErrorBody)}
        wanted |= {(shape, mode): TypeAdapter(shape) for shape, mode in shapes if isinstance(shape, type)}
        found, definitions = TypeAdapter.json_schemas(
            [(shape, mode, adapter) for (shape, mode), adapter in wanted.items()],  # type: ignore[misc]
            ref_template="#/components/schemas/{model}",
        )
        self.definitions: dict[str, Any] = definitions.get("$defs", {})
        self._found: dict[Any, Any] = found

    def content(self, shape: Shape, mode: str, media_type: str) -> dict[str, Any]:
        """Put a shape where OpenAPI has the content of a body."""
        return {media_type: {"schema": self._found[shape, mode] if isinstance(shape, type) else dict(shape)}}


def _operation(route: Route, path: str, described: _Description, schemas: _Schemas) -> dict[str, Any]:
    text = " ".join((route.endpoint.__doc__ or "").split())
    content = schemas.content(described.answer, "serialization", described.answer_type)
    if described.events:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = schemas.content(ErrorBody, "serialization", JSON)
    answers = {"200": _response(200, content)} | {str(code): _response(code, error) for code in described.errors}
    if described.unwell is not None:
        answers["503"] = _response(503, schemas.content(described.unwell, "serialization", JSON))
    answers["default"] = _response(500, error) | {"description": "Any other failure"}
    operation: dict[str, Any] = {"summary": text, "operationId": route.name, "responses": answers}
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
