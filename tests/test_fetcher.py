"""Images from https URLs: listed hosts alone, over real TLS, within the limits."""

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


class Pictures(BaseHTTPRequestHandler):
    """Serves pictures, well and badly."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.paths.append(self.path)  # type: ignore[attr-defined]
        match self.path:
            case "/red.png" | "/red.png?2":
                self._say(200, red())
            case "/on":
                self._say(302, b"", {"location": "/red.png"})
            case "/away":
                self._say(302, b"", {"location": "https://127.0.0.1:1/red.png"})
            case "/plain":
                self._say(302, b"", {"location": f"http://{self.headers['host']}/red.png"})
            case "/round":
                self._say(302, b"", {"location": "/round"})
            case "/large":
                self._say(200, b"x" * (LIMIT + 1))
            case "/lies":
                self.send_response(200)
                self.send_header("connection", "close")
                self.end_headers()
                for _ in range(100):
                    self.wfile.write(b"x" * LIMIT)
            case "/zipped":
                self._say(200, b"x", {"content-encoding": "gzip"})
            case "/slow":
                self.send_response(200)
                self.send_header("content-length", "9")
                self.end_headers()
                time.sleep(1)
            case "/text":
                self._say(200, b"<html>")
            case _:
                self._say(404, b"")

    def _say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    """Clients that hang up are no news."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Pictures)
        self.paths: list[str] = []
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def host(authority: trustme.CA) -> Iterator[Quiet]:
    """A host of pictures with a certificate for localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with Quiet(context) as server:
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


def name(host: Quiet) -> str:
    return f"localhost:{host.server_port}"


def test_a_listed_host_is_fetched_from_over_tls(host: Quiet, authority: trustme.CA) -> None:
    """The bytes come as they are, equal URLs once, and the same host may send on."""
    urls = [f"https://{name(host)}/{path}" for path in ("red.png", "red.png", "on")]
    assert fetch(*urls, hosts=[name(host).upper()], authority=authority) == [red(), red()]
    assert sorted(host.paths) == ["/on", "/red.png", "/red.png"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("away", "another host"),
        ("plain", "must use https"),
        ("round", "more than 3 times"),
        ("large", "larger than 2000 bytes"),
        ("lies", "larger than 2000 bytes"),
        ("zipped", "compressed"),
        ("slow", "within 0.5 s"),
        ("none", "status 404"),
    ],
)
def test_a_host_that_behaves_badly_is_an_error_that_says_how(
    host: Quiet, authority: trustme.CA, path: str, why: str
) -> None:
    """Redirects to elsewhere, too many bytes, too much time and failures end the fetch."""
    began = time.monotonic()
    [found] = fetch(f"https://{name(host)}/{path}", hosts=[name(host)], authority=authority, timeout=0.5)
    assert isinstance(found, ImageError)
    assert why in str(found)
    assert time.monotonic() - began < 3


def test_a_certificate_that_nobody_vouches_for_is_refused(host: Quiet) -> None:
    """Without the authority's certificate there is no connection."""
    [found] = fetch(f"https://{name(host)}/red.png", hosts=[name(host)], authority=None)
    assert isinstance(found, ImageError)
    assert not host.paths


def test_all_images_of_a_request_share_one_limit(host: Quiet, authority: trustme.CA) -> None:
    """However small each is, together they may not pass the total."""
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
def test_no_spelling_leads_to_a_host_that_is_not_listed(url: str) -> None:
    """Whatever a URL looks like, nothing but the listed name and port is ever asked."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, stream=httpx.ByteStream(b"x"))

    [found] = fetch(url, hosts=["images.example.org"], authority=None, transport=httpx.MockTransport(answer))
    assert isinstance(found, ImageError)
    assert len(str(found)) < 400
    assert not asked


def test_the_listed_host_is_asked_whatever_its_case() -> None:
    """Names know no case, and the default port may be written."""
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=httpx.ByteStream(b"x")))
    urls = ["HTTPS://Images.Example.Org/a", "https://images.example.org:443/b"]
    assert fetch(*urls, hosts=["images.example.org"], authority=None, transport=transport) == [b"x", b"x"]


def asking(*urls: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": parts}]}


def test_the_service_fetches_images_of_listed_hosts(
    host: Quiet, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several images of a message, fetched and sent, reach the engine in their order; what is no image is a 400."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    engine = FakeEngine()
    url = f"https://{name(host)}/red.png"
    with client(engine, image_hosts=(name(host),), state=tmp_path) as http:
        answer = http.post(CHAT, json=asking(picture(4, 4), url, picture(5, 5), url))
        assert answer.status_code == 200, answer.text
        [message] = engine.seen[0][0]
        assert [part["image"].size for part in message["content"]] == [(4, 4), (8, 6), (5, 5), (8, 6)]
        bad = http.post(CHAT, json=asking(picture(), f"https://{name(host)}/text"))
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "messages[0].content[1].image_url")
    assert "not an image" in bad.text


def test_no_host_is_listed_by_default() -> None:
    """Out of the box nothing is fetched, and the error says why and what to do."""
    answer = client().post(CHAT, json=asking("https://images.example.org/a.png"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image")
    assert "the server's settings allow no hosts" in answer.text
    assert "data URL" in answer.text
