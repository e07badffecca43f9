"""Fetching of images over real TLS: only from allowed hosts, within the limits."""

from __future__ import annotations

import asyncio
import io
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from PIL import Image

from service.chat.image_fetcher import ImageFetcher
from service.chat.images import ImageError
from tests.test_app import CHAT, FakeEngine, client, picture

LIMIT = 2000


def red() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(data, "PNG")
    return data.getvalue()


class ImageHandler(BaseHTTPRequestHandler):
    """Serves an image, redirects, and faulty responses."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.paths.append(self.path)  # type: ignore[attr-defined]
        match self.path:
            case "/red.png" | "/red.png?2":
                self._respond(200, red())
            case "/redirect":
                self._respond(302, b"", {"location": "/red.png"})
            case "/other-host":
                self._respond(302, b"", {"location": "https://127.0.0.1:1/red.png"})
            case "/http":
                self._respond(302, b"", {"location": f"http://{self.headers['host']}/red.png"})
            case "/loop":
                self._respond(302, b"", {"location": "/loop"})
            case "/large":
                self._respond(200, b"x" * (LIMIT + 1))
            case "/no-length":
                self.send_response(200)
                self.send_header("connection", "close")
                self.end_headers()
                for _ in range(100):
                    self.wfile.write(b"x" * LIMIT)
            case "/gzip":
                self._respond(200, b"x", {"content-encoding": "gzip"})
            case "/slow":
                self.send_response(200)
                self.send_header("content-length", "9")
                self.end_headers()
                time.sleep(1)
            case "/text":
                self._respond(200, b"<html>")
            case _:
                self._respond(404, b"")

    def _respond(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class ImageHost(ThreadingHTTPServer):
    """Ignores errors of connections that the client closes."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), ImageHandler)
        self.paths: list[str] = []
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def host(authority: trustme.CA) -> Iterator[ImageHost]:
    """An image host with a certificate for localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with ImageHost(context) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(*urls: str, hosts: list[str], authority: trustme.CA | None, **more: Any) -> list[bytes | ImageError]:
    context = ssl.create_default_context()
    if authority:
        authority.configure_trust(context)

    async def run() -> list[bytes | ImageError]:
        options: dict[str, Any] = {"timeout": 5, "max_bytes": LIMIT, **more}
        total = options.pop("max_total", 10 * LIMIT)
        fetcher = ImageFetcher(hosts, tls=context, **options)
        try:
            return list((await fetcher.fetch(urls, max_total=total)).values())
        finally:
            await fetcher.close()

    return asyncio.run(run())


def name(host: ImageHost) -> str:
    return f"localhost:{host.server_port}"


def test_allowed_host_is_fetched_from_over_tls(host: ImageHost, authority: trustme.CA) -> None:
    """The bytes are returned unchanged, equal URLs are fetched once, and a redirect within the host is followed."""
    urls = [f"https://{name(host)}/{path}" for path in ("red.png", "red.png", "redirect")]
    assert fetch(*urls, hosts=[name(host).upper()], authority=authority) == [red(), red()]
    assert sorted(host.paths) == ["/red.png", "/red.png", "/redirect"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("other-host", "another host"),
        ("http", "must use https"),
        ("loop", "more than 3 times"),
        ("large", "larger than 2000 bytes"),
        ("no-length", "larger than 2000 bytes"),
        ("gzip", "compressed"),
        ("slow", "within 0.5 s"),
        ("none", "status 404"),
    ],
)
def test_faulty_responses_are_errors_with_the_reason(
    host: ImageHost, authority: trustme.CA, path: str, reason: str
) -> None:
    """Redirects to other hosts, too many bytes, timeouts and error statuses are ImageErrors."""
    began = time.monotonic()
    [found] = fetch(f"https://{name(host)}/{path}", hosts=[name(host)], authority=authority, timeout=0.5)
    assert isinstance(found, ImageError)
    assert reason in str(found)
    assert time.monotonic() - began < 3


def test_untrusted_certificate_is_rejected(host: ImageHost) -> None:
    """Without a trusted certificate no request is sent."""
    [found] = fetch(f"https://{name(host)}/red.png", hosts=[name(host)], authority=None)
    assert isinstance(found, ImageError)
    assert not host.paths


def test_images_of_a_request_share_one_limit(host: ImageHost, authority: trustme.CA) -> None:
    """The total of all images of a request is limited, however small each of them is."""
    urls = [f"https://{name(host)}/red.png", f"https://{name(host)}/red.png?2"]
    found = fetch(urls[0], hosts=[name(host)], authority=authority, max_total=len(red()))
    assert found == [red()]
    both = fetch(*urls, hosts=[name(host)], authority=authority, max_total=2 * len(red()) - 1)
    assert [str(one) for one in both if isinstance(one, ImageError)] == [
        f"the images of the request are larger than {2 * len(red()) - 1} bytes in total"
    ]


@pytest.mark.parametrize(
    "url",
    [
        "http://images.example.org/a.png",
        "HTTPS://images.example.org.evil.org/a.png",
        "https://evil.org/images.example.org",
        "https://images.example.org@evil.org/a.png",
        "https://images.example.org:pass@images.example.org/a.png",
        "https://images.example.org:444/a.png",
        "https://sub.images.example.org/a.png",
        "https://images.example.org./a.png",
        "https://images.example.org\\@evil.org/a.png",
        "https://images.example.org%2eevil.org/a.png",
        "https://127.0.0.1/a.png",
        "https://[::1]/a.png",
        "https://[::1/a.png",
        "https://2130706433/a.png",
        "https:///a.png",
        "https://",
        "https:images.example.org/a.png",
        "https://images.example.org\x00/a.png",
        "https://im\u0430ges.example.org/a.png",
        "https://images.example.org:99999999/",
        "https://" + "a" * 70000,
    ],
)
def test_no_spelling_reaches_a_host_that_is_not_allowed(url: str) -> None:
    """However a URL is written, no request is sent to another name or port."""
    requested: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        requested.append(str(request.url))
        return httpx.Response(200, stream=httpx.ByteStream(b"x"))

    [found] = fetch(url, hosts=["images.example.org"], authority=None, transport=httpx.MockTransport(respond))
    assert isinstance(found, ImageError)
    assert len(str(found)) < 400
    assert not requested


def test_allowed_host_matches_in_any_case() -> None:
    """Host names ignore case, and the default port may be written."""
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=httpx.ByteStream(b"x")))
    urls = ["HTTPS://Images.Example.Org/a", "https://images.example.org:443/b"]
    assert fetch(*urls, hosts=["images.example.org"], authority=None, transport=transport) == [b"x", b"x"]


def request_with(*urls: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": parts}]}


def test_service_fetches_images_from_allowed_hosts(
    host: ImageHost, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched and inline images reach the engine in their order; a response that is not an image is a 400."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    engine = FakeEngine()
    url = f"https://{name(host)}/red.png"
    with client(engine, image_hosts=(name(host),), state=tmp_path) as http:
        answer = http.post(CHAT, json=request_with(picture(4, 4), url, picture(5, 5), url))
        assert answer.status_code == 200, answer.text
        [message] = engine.seen[0][0]
        assert [part["image"].size for part in message["content"]] == [(4, 4), (8, 6), (5, 5), (8, 6)]
        invalid = http.post(CHAT, json=request_with(picture(), f"https://{name(host)}/text"))
    assert (invalid.status_code, invalid.json()["error"]["param"]) == (400, "messages[0].content[1].image_url")
    assert "not an image" in invalid.text


def test_no_host_is_allowed_by_default() -> None:
    """By default nothing is fetched, and the error says why and what to send instead."""
    answer = client().post(CHAT, json=request_with("https://images.example.org/a.png"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image")
    assert "the server's settings allow no hosts" in answer.text
    assert "data URL" in answer.text
