"""Random and invalid requests over real HTTP: no 500, no hang, no memory leak."""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.test_app import CHAT, HELLO, INVALID_BODIES, INVALID_FIELDS
from tests.test_images import NOISE, RED, bomb, encoded

TIMEOUT = 10  # seconds, after which a request counts as hung
SERVER = """
import asyncio, sys, uvicorn
from service.app import create_app
from service.settings import Settings
from tests.test_app import IDENTITY, FakeEngine

class StatelessEngine(FakeEngine):
    # forgets every request, so that the test of memory measures the service alone
    async def stream(self, *arguments, **more):
        try:
            async for item in super().stream(*arguments, **more):
                yield item
        finally:
            self.seen.clear(), self.tools.clear(), self.priorities.clear()
            self.started = asyncio.Queue()

settings = Settings(slot="green", max_pixels=10_000, max_body=1 << 20, state=sys.argv[1])
app = create_app(StatelessEngine(), IDENTITY, settings, serving=lambda: True)
config = uvicorn.Config(app, port=0, log_level="error", access_log=False)

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)

Server(config).run()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    """The application in a separate process, which must never log a traceback."""
    log = tmp_path_factory.mktemp("fuzz") / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GLM_")}
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(log.parent)],
            cwd=Path(__file__).parent.parent, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    assert process.stdout
    with process:
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}", psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(TIMEOUT)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def http(server: tuple[str, psutil.Process]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server[0], timeout=TIMEOUT, trust_env=False) as one:
        yield one


@pytest.fixture(scope="module")
def api(server: tuple[str, psutil.Process]) -> Any:
    return schemathesis.openapi.from_url(f"{server[0]}/openapi.json")


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize(
    "mode", [pytest.param(GenerationMode.POSITIVE, marks=pytest.mark.long), GenerationMode.NEGATIVE]
)
def test_every_operation_conforms_to_the_document(api: Any, mode: GenerationMode) -> None:
    """Valid and invalid requests get responses that the OpenAPI document describes; none is a 500."""
    operations = [result.ok() for result in api.get_all_operations()]
    assert len(operations) > 15
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
            continue  # it cannot be invalid: any text is a path

        @EXAMPLES
        @given(operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            case.call_and_validate(timeout=TIMEOUT, checks=CHECKS)

        check()


def _part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _assert_no_server_error(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert len(answer.text) < 1000


IMAGES = [encoded(image, kind) for image in (RED, NOISE) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
IMAGES += [bomb(20_000, 20_000), bomb(1, 9999)]


@st.composite
def _damaged_image(draw: st.DrawFn) -> bytes:
    """An image with some of its bytes replaced, removed or inserted."""
    data = bytearray(draw(st.sampled_from(IMAGES)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 40))
        data[at : at + size] = draw(st.binary(max_size=40))
    return bytes(data)


@given(_damaged_image(), st.sampled_from(["png", "jpeg", "webp", "svg+xml", "é"]))
@settings(EXAMPLES, max_examples=300)
def test_damaged_images_are_decoded_or_rejected(http: httpx.Client, data: bytes, kind: str) -> None:
    """Damaged images of every format are a 200 or a 400."""
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    answer = http.post(CHAT, json={"messages": [{"role": "user", "content": [_part(url)]}]})
    _assert_no_server_error(answer)
    assert answer.status_code in (200, 400)


LINES = [
    json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": HELLO}).encode(),
    b"",
    b"{",
    b"[]",
    *INVALID_BODIES,
]


@st.composite
def _jsonl(draw: st.DrawFn) -> bytes:
    lines = draw(st.lists(st.one_of(st.sampled_from(LINES), st.binary(max_size=50)), max_size=6))
    data = bytearray(b"\n".join(lines))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 20))] = draw(st.binary(max_size=20))
    return bytes(data)


@given(_jsonl())
@settings(EXAMPLES, max_examples=60)
def test_invalid_batch_files_are_never_a_500(http: httpx.Client, data: bytes) -> None:
    """Any file is stored or rejected, and so is a batch created from it."""
    stored = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("x.jsonl", data)})
    _assert_no_server_error(stored)
    if stored.status_code == 200:
        body = {"input_file_id": stored.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
        created = http.post("/v1/batches", json=body)
        _assert_no_server_error(created)
        if created.status_code == 200:
            _assert_no_server_error(http.post(f"/v1/batches/{created.json()['id']}/cancel"))


def _bad_requests() -> Iterator[tuple[str, str, dict[str, Any]]]:
    rng = random.Random(7)
    for number in itertools.count():
        noise = rng.randbytes(rng.randrange(2000))
        yield "POST", CHAT, {"content": noise, "headers": {"content-type": "application/json"}}
        yield "POST", CHAT, {"content": rng.choice(INVALID_BODIES), "headers": {"content-type": "application/json"}}
        yield "POST", CHAT, {"json": rng.choice(INVALID_FIELDS[:-1])[0]}  # the last needs a lower limit
        image = f"data:image/png;base64,{base64.b64encode(noise).decode()}"
        yield (
            "POST",
            CHAT,
            {"json": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]}},
        )
        yield "GET", f"/{number}/{noise[:20].hex()}", {"headers": {"x-request-id": str(number)}}
        yield "POST", CHAT, {"content": b"x" * ((1 << 20) + 1), "headers": {"content-type": "application/json"}}
        yield "DELETE", CHAT, {}
        yield "POST", "/v1/batches", {"json": {"input_file_id": str(number)}}
        yield "GET", f"/v1/files/{number}", {}
        yield "POST", CHAT, {"json": HELLO | {f"field-{number}": number, "max_tokens": -number}}


@pytest.mark.long
def test_bad_requests_do_not_leak_memory(server: tuple[str, psutil.Process]) -> None:
    """Between 2,000 and 10,000 invalid requests the memory grows by less than 2 MiB."""
    address, process = server
    sizes = []
    with httpx.Client(base_url=address, timeout=TIMEOUT, trust_env=False) as one:
        for number, (method, path, more) in enumerate(_bad_requests(), 1):
            answer = one.request(method, path, **more)
            assert 400 <= answer.status_code < 500, (method, path, answer.text[:200])
            if number % 2000 == 0:
                sizes.append(process.memory_info().rss >> 10)
            if number == 10_000:
                break
    assert sizes[-1] - sizes[0] < 2048, f"KiB after each 2,000: {sizes}"
