"""The page's HTTP client and its pictures."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests.page_fixtures import (
    FakeService,
    free_address,
    picture,
)
from ui.client import Fault, LiveSlot, ServiceClient, ServiceError, api_key, service_address
from ui.picture import LONGEST_EDGE, MAX_UNCHANGED, prepare


@pytest.fixture
def service() -> Iterator[FakeService]:
    service = FakeService()
    yield service
    service.close()


def test_large_picture() -> None:
    """A picture with an edge above the limit is scaled down; a small one is unchanged."""
    small = picture()
    assert prepare("small.png", small).data == small
    large = prepare("large.png", picture(3 * LONGEST_EDGE, LONGEST_EDGE))
    with Image.open(io.BytesIO(large.data)) as image:
        assert image.size == (LONGEST_EDGE, LONGEST_EDGE // 3 + 1)
    assert len(large.data) < MAX_UNCHANGED
    assert large.url.startswith("data:image/jpeg;base64,")


def test_exif_orientation() -> None:
    """A scaled photo keeps the orientation of its EXIF data."""
    data = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new("RGB", (2 * LONGEST_EDGE, LONGEST_EDGE), "red").save(data, "JPEG", exif=exif)
    with Image.open(io.BytesIO(prepare("photo.jpg", data.getvalue()).data)) as image:
        assert image.size == (LONGEST_EDGE // 2, LONGEST_EDGE)


def test_live(service: FakeService) -> None:
    """The client returns the live slot; raises on timeout, refused connection and an invalid response."""
    client = ServiceClient(service.address)
    assert client.live() == LiveSlot("1.0.0", "blue")
    client.close()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert fault_of(f"127.0.0.1:{silent.getsockname()[1]}") is Fault.TIMEOUT
    assert fault_of(free_address()) is Fault.UNREACHABLE
    handlers: Any = service._server.RequestHandlerClass
    handlers.do_GET = lambda handler: handler._send(200, {})
    assert fault_of(service.address) is Fault.INVALID_RESPONSE


def fault_of(address: str) -> Fault:
    client = ServiceClient(address)
    try:
        with pytest.raises(ServiceError) as caught:
            client.live()
    finally:
        client.close()
    return caught.value.fault


@pytest.mark.parametrize(("listen", "expected"), [("", "127.0.0.1:8000"), ("10.0.0.1:80", "10.0.0.1:80")])
def test_service_address(monkeypatch: pytest.MonkeyPatch, listen: str, expected: str) -> None:
    """The address of the service is GLM_LISTEN, with a default."""
    monkeypatch.setenv("GLM_LISTEN", listen)
    assert service_address() == expected


@pytest.mark.parametrize(("value", "expected"), [("key", "key"), (" key\n", "key"), ("", None)])
def test_api_key(monkeypatch: pytest.MonkeyPatch, value: str, expected: str | None) -> None:
    """The page's API key is that of the environment; an empty one is none."""
    monkeypatch.setenv("GLM_API_KEY", value)
    assert api_key() == expected


def test_wildcard_address(service: FakeService) -> None:
    """For a service that listens on 0.0.0.0 the client connects to 127.0.0.1."""
    client = ServiceClient(service.address.replace("127.0.0.1", "0.0.0.0"))
    assert client.live().version == "1.0.0"
    client.close()


@pytest.mark.parametrize("waits", [False, True])
def test_version_of_an_answer(service: FakeService, waits: bool) -> None:
    """The head of an answer that had to wait names no version; then it is that of the events."""
    service.waits = waits
    client = ServiceClient(service.address)
    with client.ask([{"role": "user", "content": "hello"}]) as answer:
        assert answer.live == LiveSlot("" if waits else "1.0.0", "blue")
        assert "".join(delta.text for delta in answer) == "".join(service.answer)
        assert answer.live == LiveSlot("1.0.0", "blue")
    client.close()
