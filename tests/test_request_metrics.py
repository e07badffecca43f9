"""Each request is measured once, by the server, and counted in the ledger, the samples and the metrics alike."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service import metrics
from service.app import create_app
from service.contract.samples import BROKEN_OFF, CLIENT_GONE, new_samples
from service.contract.worker_state import Ledger
from service.identity import Identity
from service.settings import Settings
from tests.server_fixtures import App, Client, Host, Message, Receive, Reply, Send, running_host, until
from tests.test_app import CHAT, HELLO, FakeEngine

pytestmark = pytest.mark.anyio


class ServiceApp(App):
    """The service's application with a fake engine, besides the paths of App, which raise or wait."""

    def __init__(self, slot: str) -> None:
        super().__init__(slot)
        self.identity = Identity(f"v-{uuid.uuid4().hex}", slot, 1)
        self._service = create_app(FakeEngine(), self.identity, Settings(slot="blue"), serving=lambda: True)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] in {"/slow", "/stream", "/raise", "/raise-midway"}:
            await super().__call__(scope, receive, send)
        else:
            await self._service(scope, receive, send)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def host(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    async with running_host(tmp_path, tmp_path_factory.mktemp("run"), app=ServiceApp) as host:
        host.blue.state.version = service_app(host).identity.version
        yield host


def service_app(host: Host) -> ServiceApp:
    assert isinstance(host.blue.app, ServiceApp)
    return host.blue.app


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def post(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


async def scrape(host: Host) -> str:
    reader, writer = await asyncio.open_unix_connection(str(host.runtime / "blue/http.sock"))
    host.clients.append(client := Client(reader, writer))
    reply: Reply = await client.ask(get("/metrics"))
    return reply.body.decode()


def counted(text: str, version: str) -> dict[tuple[str, str], float]:
    """Return glm_requests_total of a version, by route and status."""
    pattern = rf'^glm_requests_total{{route="(.*)",slot="blue",status="(.*)",version="{version}"}} (.*)$'
    return {(route, status): float(value) for route, status, value in re.findall(pattern, text, re.MULTILINE)}


def statuses(host: Host) -> list[int]:
    samples, _ = new_samples(host.runtime / "blue/1/1.samples", host.blue.state.version)
    return [sample.status for sample in samples]


async def test_requests_are_counted_under_the_template_of_their_route(host: Host) -> None:
    """A path chosen by a client never becomes a label; requests of the internal socket have a route of their own."""
    client, version = await host.client(), host.blue.state.version
    for request in (post(HELLO), post({**HELLO, "stream": True}), post({}), get("/secret"), get("/v1/models/mine")):
        await client.ask(request)
    await scrape(host)
    text = await scrape(host)
    assert counted(text, version) == {
        (CHAT, "200"): 2.0,
        (CHAT, "400"): 1.0,
        ("other", "404"): 1.0,
        ("/v1/models/{id:path}", "404"): 1.0,
        ("internal", "200"): 1.0,
    }
    assert f'glm_request_seconds_count{{route="{CHAT}",slot="blue",version="{version}"}} 3.0' in text
    assert f'glm_request_seconds_bucket{{le="600.0",route="{CHAT}",slot="blue",version="{version}"}} 3.0' in text
    assert "secret" not in text
    assert sorted(statuses(host)) == [200, 200, 400, 404, 404]
    assert host.blue.ledger == Ledger(accepted=5, completed=5, internal=2)


async def test_failures_are_the_same_in_ledger_samples_and_metrics(host: Host) -> None:
    """An exception, an answer that was broken off, and a client that went away before and during its answer."""
    version = host.blue.state.version
    assert (await (await host.client()).ask(get("/raise"))).status == 500
    broken, waiting, reading = [await host.client() for _ in range(3)]
    broken.send(get("/raise-midway"))
    waiting.send(get("/slow"))
    reading.send(get("/stream"))
    await reading.first_part()
    await until(lambda: host.blue.app.running == 3, "the requests")
    waiting.abort()
    reading.abort()
    await until(lambda: host.blue.ledger.client_aborted == 2, "the aborts")
    host.blue.app.proceed.set()
    await until(lambda: host.blue.app.running == 0, "the end")
    assert counted(await scrape(host), version) == {("other", "500"): 2.0, ("other", "499"): 2.0}
    assert sorted(statuses(host)) == [CLIENT_GONE, CLIENT_GONE, BROKEN_OFF, BROKEN_OFF]
    assert host.blue.ledger == Ledger(accepted=4, failed=2, client_aborted=2, internal=1)


CHUNKED = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


@pytest.mark.parametrize(
    "body",
    [
        b'2\r\n{"\r\nno chunk\r\n',
        b"1;" + b"a" * 200_000,
        b"1\r\na\r\n" * 10_000,
        b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 20_000,
        b"5\r\n{",
    ],
    ids=["no chunk", "extension", "tiny chunks", "trailers", "disconnect"],
)
async def test_a_body_that_its_client_spoils_is_no_failure_of_the_version(host: Host, body: bytes) -> None:
    """Else one client could have versions rolled back: what failed is what the analysis compares."""
    client = await host.client()
    client.send(CHUNKED)
    await until(lambda: any(one.cycle for one in host.blue.connections), "the application, which reads the body")
    await asyncio.sleep(0.05)
    client.send(body)
    if body == b"5\r\n{":
        client.abort()
    else:
        assert (await client.reply()).status in (400, 413, 431)
    await until(lambda: bool(statuses(host)), "the end")
    assert statuses(host) == [CLIENT_GONE]
    assert host.blue.ledger.failed == 0
    [(key, _)] = counted(await scrape(host), host.blue.state.version).items()
    assert key[1] == "499"


async def test_requests_in_flight_are_those_of_the_version_that_is_served(host: Host) -> None:
    """The gauge follows within a tick; after a weight swap there is none of the earlier version."""
    version = host.blue.state.version
    client = await host.client()
    client.send(get("/slow"))

    async def until_gauge(version: str, value: str | None) -> None:
        line = f'glm_requests_in_flight{{slot="blue",version="{version}"}}'
        async with asyncio.timeout(5):
            found = None
            while found != [value] * bool(value):
                found = re.findall(rf"^{re.escape(line)} (.*)$", await scrape(host), re.MULTILINE)
                await asyncio.sleep(0.02)

    await until_gauge(version, "1.0")
    host.blue.state.set_version("after")
    await until_gauge("after", "1.0")
    await until_gauge(version, None)
    host.blue.app.proceed.set()
    await client.reply()
    await until_gauge("after", "0.0")


async def test_request_counts_for_the_version_that_answered(host: Host) -> None:
    """A weight swap in the middle of a request does not change what it counts for."""
    app, version = service_app(host), host.blue.state.version

    class SwapAtTheFirstToken(FakeEngine):
        async def stream(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
            app.identity.version = host.blue.state.version = "after"
            async for item in super().stream(*args, **options):
                yield item

    app._service = create_app(SwapAtTheFirstToken(), app.identity, Settings(slot="blue"), serving=lambda: True)
    await (await host.client()).ask(post(HELLO))
    text = await scrape(host)
    assert counted(text, version) == {(CHAT, "200"): 1.0}


async def test_the_metrics_have_what_the_ledger_has(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the ledger is written, also while the worker leaves: so a kill leaves the same sums in both."""
    state, written = host.blue.state, []
    publish = host.blue.server._state_file.publish

    def note(**options: Any) -> None:
        [family] = metrics._requests.collect()
        shown = [one for one in family.samples if one.name.endswith("_total") and one.labels["route"] != "internal"]
        counted = sum(one.value for one in shown if one.labels["version"] == state.version)
        in_flight = metrics._in_flight.labels(state.version, "blue")._value.get()
        ledger = state.ledger
        ended = ledger.completed + ledger.failed + ledger.client_aborted
        written.append((state.phase, (ended, state.in_flight), (counted, in_flight)))
        publish(**options)

    monkeypatch.setattr(host.blue.server._state_file, "publish", note)
    slow = await host.client()
    slow.send(get("/slow"))
    for request in (post(HELLO), post({}), get("/raise"), get("/v1/models/mine")):
        await (await host.client()).ask(request)
    await until(lambda: written and written[-1][1] == (4, 1), "the first ones")
    leaving = asyncio.create_task(host.blue.leave())
    await until(lambda: written[-1][0] == "leaving", "the begin of the drain")
    host.blue.app.proceed.set()
    await slow.reply()
    await leaving
    assert [one for one in written if one[1] != one[2]] == []
    assert ("leaving", (4, 1), (4, 1)) in written
    assert written[-1] == ("gone", (5, 0), (5, 0))


KINDS = {
    "invalid_http": [b"nonsense\r\n\r\n", b"\r\n" * 2000, b"GET / HTTP/9.9\r\n\r\n"],
    "url_too_long": [b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n"],
    "head_too_large": [b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n", b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000],
}


def errors(text: str, version: str) -> dict[str, float]:
    """Return glm_errors_total of a version, by kind."""
    pattern = rf'^glm_errors_total{{kind="(.*)",slot="blue",version="{version}"}} (.*)$'
    return {kind: float(value) for kind, value in re.findall(pattern, text, re.MULTILINE)}


async def test_what_the_parser_refuses_is_counted_and_logged(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """Once each, by its kind; the log has the address and the reason of the first ones."""
    version = host.blue.state.version
    sent = [head for heads in KINDS.values() for head in heads]
    for head in sent:
        client = await host.client()
        client.send(head)
        await client.rest()
    text = await scrape(host)
    assert errors(text, version) == {kind: float(len(heads)) for kind, heads in KINDS.items()}
    lines = [record.getMessage() for record in caplog.records if "refused with" in record.getMessage()]
    assert 0 < len(lines) <= len(sent)
    assert all(re.match(r"refused with 4\d\d: 127\.0\.0\.1 \S+ \S+ ", line) for line in lines)
    assert "Invalid method" in lines[0]
    assert "empty lines" in lines[1]


async def test_a_request_is_one_error(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also where the application was reading its body when that broke off, or where its head took too long."""
    runtime = tmp_path_factory.mktemp("run")
    async with running_host(tmp_path, runtime, app=ServiceApp, head_timeout=0.05) as host:
        version = host.blue.state.version = service_app(host).identity.version
        for request in (
            b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
            b"GET /half HTTP/1.1\r\n",
        ):
            client = await host.client()
            client.send(request)
            await client.rest()
        text = await scrape(host)
    assert errors(text, version) == {"invalid_http": 1.0, "request_timeout": 1.0}
