"""Where a request came from, as its sample tells: which client, and whether it chose the side that answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.canary_file import Canary, CanaryFile
from service.contract.samples import Origin, Sample, new_samples
from service.routing.origin import origin_of
from tests.server_fixtures import Host, running_host, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def host(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    async with running_host(tmp_path, tmp_path_factory.mktemp("run")) as host:
        yield host


def get(path: str = "/", **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in {"Host": "x", **headers}.items()]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "\r\n"]).encode()


def samples(host: Host, slot: str = "blue") -> list[Sample]:
    return new_samples(host.runtime / slot / "1/1.samples", "1.0.0")[0]


def begin_canary(host: Host, weight: float) -> None:
    CanaryFile(host.runtime).write(Canary("green", weight, 1))
    for slot in host.slots:
        slot.tick()


async def test_a_request_that_chooses_its_side_is_pinned(host: Host) -> None:
    """By the header. One that follows another on its connection is not: its side is drawn anew."""
    begin_canary(host, 0)
    client = await host.client()
    await client.ask(get())
    await client.ask(get(X_GLM_Slot="live"))
    await client.ask(get(X_GLM_Slot="neither"))
    client.send(get() + get() + get())
    for _ in range(3):
        await client.reply()
    await client.ask(get())
    assert [one.origin.is_pinned for one in samples(host)] == [False, True, False, False, False, False, False]
    await client.ask(get(X_GLM_Slot="candidate"))
    [pinned] = samples(host, "green")
    assert pinned.origin.is_pinned
    assert {one.origin.address for one in samples(host)} == {pinned.origin.address} != {0}


async def test_without_a_canary_nothing_is_pinned(host: Host) -> None:
    """There is one side: the header of a client that always sends it does not keep its requests from being judged."""
    client = await host.client()
    client.send(get(X_GLM_Slot="live") + get(X_GLM_Slot="candidate"))
    for _ in range(2):
        await client.reply()
    assert [one.origin.is_pinned for one in samples(host)] == [False, False]


async def test_pinned_requests_in_flight_are_published(host: Host) -> None:
    """Until the last of them has ended, also if its client has gone."""
    begin_canary(host, 0)
    clients = [await host.client() for _ in range(3)]
    for client, pin in zip(clients, ("live", "live", "neither"), strict=True):
        client.send(get("/slow", X_GLM_Slot=pin))
    await until(lambda: host.blue.app.running == 3, "the requests")
    assert host.blue.state.pinned == 2
    clients[0].abort()
    host.blue.app.proceed.set()
    await until(lambda: host.blue.app.running == 0, "the end")
    await until(lambda: host.blue.state.pinned == 0, "the end of the pinned ones")


def scope(address: str, **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"client": (address, 1), "headers": pairs}


@given(key=st.text("abc", max_size=3), other=st.text("abc", max_size=3))
def test_keys_are_told_apart(key: str, other: str) -> None:
    """Equal keys have equal hashes, other keys have others; none is 0."""
    first, second = (origin_of(scope("127.0.0.1", authorization=one)) for one in (key, other))
    assert (first == second) is (key == other)
    assert (first.key == 0) is (key == "")


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
def test_addresses_are_told_apart(first: str, second: str, is_same: bool) -> None:
    """An IPv6 address by its network, all of which one client may have."""
    assert (origin_of(scope(first)) == origin_of(scope(second))) is is_same


def test_an_unknown_client_has_no_origin() -> None:
    """As on a Unix socket."""
    assert origin_of({"client": None, "headers": []}) == Origin()
