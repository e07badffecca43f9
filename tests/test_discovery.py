"""What a client finds out about the service: routes, methods, limits, and the origins of pages that may ask."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from service.api.routes import Endpoint
from service.batches import api
from service.engine import PromptTooLong
from tests.test_app import CHAT, HELLO, FakeEngine, client, settings

PAGE = "https://page.example"


def served(http: TestClient) -> dict[str, set[str]]:
    """Return the methods of every path, with "x" in the place of parameters."""
    found: dict[str, set[str]] = {}
    for route in http.app.routes:  # type: ignore[attr-defined]
        assert isinstance(route, Endpoint)
        assert route.methods
        found.setdefault(re.sub(r"\{.*?\}", "x", route.path), set()).update(route.methods)
    return found


def test_health_has_two_names() -> None:
    """/health is /healthz: alive, or hung."""
    engine = FakeEngine()
    http = client(engine)
    for alive in (True, False):
        engine.alive = alive
        answers = [http.get(path) for path in ("/health", "/healthz")]
        assert answers[0].json() == answers[1].json()
        assert [answer.status_code for answer in answers] == [200 if alive else 503] * 2


def test_models_have_the_context_length_of_the_engine() -> None:
    """As max_model_len, in tokens."""
    http = client()
    [listed] = http.get("/v1/models").json()["data"]
    assert listed == http.get("/v1/models/glm-4.6v-flash").json()
    assert listed["max_model_len"] == FakeEngine().context_length


@pytest.mark.parametrize("error", [PromptTooLong(123, 45), PromptTooLong.estimated(123, 45)])
def test_a_prompt_that_is_too_long_is_told_in_the_usual_words(error: PromptTooLong) -> None:
    """Clients search for these words and for the code; the text has both counts."""
    answer = client(FakeEngine(fail_at=0, error=error)).post(CHAT, json=HELLO).json()["error"]
    assert answer["code"] == "context_length_exceeded"
    assert "maximum context length is 45 tokens" in answer["message"]
    assert "123 tokens" in answer["message"]


def test_every_path_answers_options_and_head(tmp_path: Path) -> None:
    """OPTIONS names the methods of a path, HEAD is GET without a body, another method is a 405 that names them."""
    with client(state=tmp_path) as http:
        for path, methods in served(http).items():
            allowed = ", ".join(sorted(methods | {"OPTIONS"}))
            options = http.options(path)
            assert (options.status_code, options.headers["allow"], options.content) == (204, allowed, b"")
            assert {"x-model-version", "x-slot", "x-request-id"} <= set(options.headers)
            wrong = http.request("PATCH", path)
            assert (wrong.status_code, wrong.headers["allow"]) == (405, allowed)
            assert wrong.json()["error"]["code"] == "method_not_allowed"
            assert wrong.json()["error"]["message"].endswith(f"allowed are {allowed}")
            head = http.head(path)
            assert head.content == b""
            assert head.status_code == (http.get(path).status_code if "GET" in methods else 405)
            assert "GET" not in methods or "HEAD" in methods
        assert http.options("/v1/nothing").status_code == 404


def test_head_of_a_file_does_not_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the length of the content."""
    with client(state=tmp_path) as http:
        data = b'{"custom_id": "a"}\n'
        file = http.post("/v1/files", files={"file": ("a.jsonl", data)}, data={"purpose": "batch"}).json()
        path = f"/v1/files/{file['id']}/content"
        assert http.get(path).content == data
        monkeypatch.setattr(api, "_chunks", None)
        head = http.head(path)
        assert (head.headers["content-length"], head.headers["content-type"]) == (
            str(len(data)),
            "application/octet-stream",
        )


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions", "/v1/embeddings", "/"])
def test_an_unknown_path_is_a_404_that_names_the_paths(path: str) -> None:
    """A wrong base URL, or a route that is not served: the message has what is there."""
    error = client().post(path, json=HELLO).json()["error"]
    assert error["code"] == "unknown_url"
    assert f"unknown URL: {path};" in error["message"]
    assert {CHAT, "/v1/models", "/v1/files", "/v1/batches", "/openapi.json"} <= set(
        re.split("[ ,;]+", error["message"])
    )
    assert len(error["message"]) < 500


def test_origins_are_off_by_default() -> None:
    """No answer has a header for other origins, and a preflight is OPTIONS."""
    answer = client().get("/v1/models", headers={"origin": PAGE})
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    preflight = client().options(CHAT, headers={"origin": PAGE, "access-control-request-method": "POST"})
    assert (preflight.status_code, preflight.headers["allow"]) == (204, "OPTIONS, POST")


@pytest.mark.parametrize(("origins", "allowed"), [((PAGE,), PAGE), (("*",), "*"), (("https://other.example",), None)])
def test_pages_of_allowed_origins_may_read_every_answer(origins: tuple[str, ...], allowed: str | None) -> None:
    """Answers, streams and errors, with the headers of the service; a preflight allows what the API needs."""
    http = client(cors_origins=origins)
    asked: list[tuple[str, dict[str, Any] | None, int]] = [
        (CHAT, HELLO, 200),
        (CHAT, {**HELLO, "stream": True}, 200),
        (CHAT, {}, 400),
        ("/v1/nothing", {}, 404),
        ("/v1/models", {}, 405),
    ]
    for path, body, status in asked:
        answer = http.post(path, json=body, headers={"origin": PAGE})
        assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (status, allowed)
        assert "X-Model-Version" in answer.headers["access-control-expose-headers"]
        assert answer.headers["x-slot"] == "green"
        assert "access-control-allow-origin" not in http.post(path, json=body).headers
    preflight = http.options(
        CHAT,
        headers={
            "origin": PAGE,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        },
    )
    assert (preflight.status_code, preflight.headers.get("access-control-allow-origin")) == (
        200 if allowed else 400,
        allowed,
    )
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["x-slot"] == "green"


def test_an_engine_failure_is_readable_too() -> None:
    """A 500 has the header for the page's origin."""
    answer = client(FakeEngine(fail_at=0), cors_origins=(PAGE,)).post(CHAT, json=HELLO, headers={"origin": PAGE})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, PAGE)


@pytest.mark.parametrize("origin", ["https://page.example/", "page.example", "", "null"])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    """It has a scheme and a host, and no path: else it would never match."""
    with pytest.raises(ValidationError, match="cors_origins"):
        settings(cors_origins=(origin,))
