"""The OpenAPI document."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from starlette.routing import Route

from service.api.routes import Endpoint
from service.chat.request import ChatRequest
from tests.test_app import CHAT, HELLO, FakeEngine, client


@pytest.fixture(scope="module")
def served() -> dict[str, Any]:
    document: dict[str, Any] = client().get("/openapi.json").json()
    return document


def _validator(served: dict[str, Any], name: str) -> Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": served["components"]})


def test_every_route_is_described(served: dict[str, Any]) -> None:
    """The document has each route and method with its responses, and no others."""
    routes = [route for route in client().app.routes if isinstance(route, Route)]  # type: ignore[attr-defined]
    expected = {
        (route.path.replace(":path", ""), method.lower())
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
    }
    documented = {(path, method) for path, operations in served["paths"].items() for method in operations}
    assert documented == expected
    assert {("/v1/files", "post"), ("/v1/batches/{id}/cancel", "post"), ("/openapi.json", "get")} <= documented
    for operations in served["paths"].values():
        for operation in operations.values():
            assert {"200", "default"} <= set(operation["responses"])
            assert operation["summary"]


def test_security_is_that_of_the_routes(served: dict[str, Any]) -> None:
    """Routes that are open to everybody say so; all others take a key in one of three headers, and may answer 401."""
    schemes = served["components"]["securitySchemes"]
    assert {scheme.get("name", "Authorization") for scheme in schemes.values()} == {
        "Authorization",
        "X-Api-Key",
        "Api-Key",
    }
    assert served["security"] == [{}, *({name: []} for name in schemes)]
    for route in client().app.routes:  # type: ignore[attr-defined]
        assert isinstance(route, Endpoint)
        for operation in served["paths"][route.path.replace(":path", "")].values():
            assert operation.get("security") == ([] if route.access == "open" else None)
            assert ("401" in operation["responses"]) == (route.access != "open")


def test_request_schema_is_that_of_the_model(served: dict[str, Any]) -> None:
    """The schema has every field of ChatRequest, and accepts and rejects what the service does."""
    chat = served["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert chat == {"$ref": "#/components/schemas/ChatRequest"}
    assert set(served["components"]["schemas"]["ChatRequest"]["properties"]) == {
        field.alias or name for name, field in ChatRequest.model_fields.items()
    }
    check = _validator(served, "ChatRequest")
    check.validate({**HELLO, "stop": "x", "modalities": ["text"], "best_of": 1, "store": True, "unheard": None})
    check.validate({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:,"}]}]})
    invalid: list[Any] = [{"messages": "x"}, {**HELLO, "best_of": 2}, {**HELLO, "unheard": 1}, {**HELLO, "tools": [{}]}]
    for body in invalid:
        assert not check.is_valid(body), body


def test_responses_conform_to_their_schemas(served: dict[str, Any]) -> None:
    """Responses conform to the document's schemas, which require all fields."""
    http = client(FakeEngine(("<think>a</think>b",)))
    answer = http.post(CHAT, json=HELLO).json()
    _validator(served, "Completion").validate(answer)
    assert not _validator(served, "Completion").is_valid(answer | {"usage": {}})
    _validator(served, "ErrorBody").validate(http.post(CHAT, json={}).json())
    _validator(served, "Models").validate(http.get("/v1/models").json())
    _validator(served, "VersionInfo").validate(http.get("/version").json())
