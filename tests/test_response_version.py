"""The version of a response during a weight swap: header and body name the weights that answered."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.chat.admission import Admission
from service.engine import Delta, Finish
from service.identity import Identity
from service.settings import Settings
from tests.test_app import FakeEngine

QUESTION = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}


def test_request_that_waited_for_admission_names_the_version_that_answered() -> None:
    """A swap before the admission of a request changes the version in its header and its body."""
    identity = Identity(f"old-{uuid.uuid4().hex}", "green", 1)
    new = f"new-{uuid.uuid4().hex}"

    class SwapBeforeAdmission(Admission):
        def admit(self, answers: int) -> Any:
            identity.version = new
            return super().admit(answers)

    admission = SwapBeforeAdmission(identity)
    http = TestClient(
        create_app(FakeEngine(), identity, Settings(slot="green"), serving=lambda: True, admission=admission)
    )
    answer = http.post("/v1/chat/completions", json=QUESTION)
    assert answer.headers["x-model-version"] == answer.json()["system_fingerprint"] == new


@pytest.mark.parametrize("stream", [False, True])
def test_response_names_the_version_at_its_admission(stream: bool) -> None:
    """A change of the version after the admission of a request is not visible in its header and body."""
    identity = Identity(f"old-{uuid.uuid4().hex}", "green", 1)
    old, new = identity.version, f"new-{uuid.uuid4().hex}"

    class SwapAfterAdmission(FakeEngine):
        async def stream(self, *args: Any, **options: Any) -> AsyncIterator[Delta | Finish]:
            identity.version = new
            async for item in super().stream(*args, **options):
                yield item

    http = TestClient(create_app(SwapAfterAdmission(), identity, Settings(slot="green"), serving=lambda: True))
    answer = http.post("/v1/chat/completions", json=QUESTION | {"stream": stream})
    assert answer.headers["x-model-version"] == old
    assert answer.text.count(f'"system_fingerprint":"{old}"') == (5 if stream else 1)
    assert new not in answer.text
    assert http.get("/version").headers["x-model-version"] == http.get("/version").json()["version"] == new
    assert http.get("/openapi.json").json()["info"]["version"] == new
    tokens = f'glm_generated_tokens_total{{slot="green",version="{old}"}} 3.0'
    assert tokens in http.get("/metrics").text
