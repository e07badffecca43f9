"""Attacks on a host: bytes that hostile clients send, over and over, from an address of their own."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image

from tests.attack.schemas import DEADLY
from tests.box import Box

__all__ = ["ATTACKER", "CONNECTIONS", "REQUESTS", "Attack", "assault"]

ATTACKER = "127.0.0.2"
PATIENCE = 20.0  # seconds that an attacker waits for the answer to a whole request


@dataclass(frozen=True)
class Attack:
    """What each of a number of connections sends: pieces without end, or one request, whose answer is read."""

    connections: int
    pieces: Callable[[], Iterator[bytes]]
    patience: float = 0.5
    """Seconds that a piece may take to be sent, or an answer to come; then the connection is closed."""


def assault(box: Box, attack: Attack, seconds: float, stop: threading.Event | None = None) -> Counter[bytes]:
    """Attack by all connections at once, which are made again when they end; returns how often each status came."""
    port = int(box.listen.split(":")[1])
    next(attack.pieces())  # some are made at first use, which takes none of the seconds
    deadline = time.monotonic() + seconds
    statuses: Counter[bytes] = Counter()

    def is_over() -> bool:
        return time.monotonic() > deadline or (stop is not None and stop.is_set())

    def send(client: socket.socket) -> None:
        for piece in attack.pieces():
            client.sendall(piece)
            if is_over():
                return
        answer = client.recv(65536)
        statuses[answer[9:12]] += 1
        while client.recv(65536):
            pass

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)  # an attacker has a machine of his own
        while not is_over():
            with suppress(OSError), socket.socket() as client:
                client.bind((ATTACKER, 0))
                client.settimeout(attack.patience)
                client.connect(("127.0.0.1", port))
                send(client)
            time.sleep(0.02)

    threads = [threading.Thread(target=run) for _ in range(attack.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def _endless(connections: int, head: bytes, piece: bytes) -> Attack:
    """Send a head, then a piece again and again."""
    return Attack(connections, lambda: itertools.chain([head], itertools.repeat(piece)))


def _slow(connections: int, head: bytes, pause: float = 0.2) -> Attack:
    """Send a head, then a byte now and then."""

    def pieces() -> Iterator[bytes]:
        yield head
        while True:
            time.sleep(pause)
            yield b"x"

    return Attack(connections, pieces)


_SMALL = b"GET /healthz HTTP/1.1\r\n\r\n"
_CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
_UPLOAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
_CHANCE = random.Random(7)
_GARBAGE = [
    _CHANCE.choice([b"GET / HTTP/1.1\r\n", _CHUNKED, b"", b"PUT ", b"\r\n" * 9])
    + _CHANCE.randbytes(_CHANCE.randrange(2000))
    for _ in range(500)
]

CONNECTIONS = {
    "pipelined requests": _endless(8, b"", _SMALL * 2000),
    "one pipeline": _endless(1, b"", _SMALL * 2000),
    "pipelined refusals": _endless(8, b"", b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 2000),
    "endless headers": _endless(32, b"GET / HTTP/1.1\r\n", b"a: " + b"b" * 60_000 + b"\r\n"),
    "endless names": _endless(32, b"GET / HTTP/1.1\r\n", b"b" * 60_000),
    "endless lines": _endless(8, b"", b"\r\n" * 30_000),
    "tiny chunks": _endless(8, _CHUNKED, b"1\r\na\r\n" * 10_000),
    "endless extensions": _endless(8, _CHUNKED + b"1;", b"a" * 60_000),
    "endless trailers": _endless(8, _CHUNKED + b"0\r\n", b"a: b\r\n" * 10_000),
    "slow heads": _slow(150, b"GET / HT"),
    "slow bodies": _slow(150, _UPLOAD),
    "garbage": Attack(8, lambda: itertools.cycle(random.sample(_GARBAGE, len(_GARBAGE)))),
    "upgrades": _endless(8, b"", b"GET /healthz HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n" * 1000),
}
"""Attacks with connections and bytes of HTTP."""


def _request(first: str, body: bytes = b"", *, kind: str = "application/json", connections: int = 2) -> Attack:
    """Clients that send one request over and over, and wait for its answer."""
    lines = (first, "Host: x", "Connection: close", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "", "")
    return Attack(connections, lambda: iter(["\r\n".join(lines).encode() + body]), PATIENCE)


def _post(body: bytes) -> Attack:
    return _request("POST /v1/chat/completions HTTP/1.1", body)


def _upload(body: bytes) -> Attack:
    return _request("POST /v1/files HTTP/1.1", body, kind="multipart/form-data; boundary=b")


def _chat(content: Any = "hi", **more: Any) -> Attack:
    return _post(json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 4, **more}).encode())


def _pictures(count: int) -> Attack:
    return Attack(2, lambda: _chat_about_pictures(count).pieces(), PATIENCE)


@cache  # encoding takes seconds, which every process that imports this would spend
def _chat_about_pictures(count: int) -> Attack:
    file = io.BytesIO()
    Image.new("RGB", (7000, 7000), "red").save(file, "WEBP")
    url = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return _chat([{"type": "image_url", "image_url": {"url": url}}] * count)


def _tools(size: int) -> Attack:
    parameters = {f"p{number}": "x" * 400 for number in range(size // 400)}
    return _chat(tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}])


def _schema(schema: Any) -> Attack:
    return _chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})


REQUESTS = {
    "numbers, 1 MB": _post(b'{"messages":[' + b"1," * 500_000 + b"1]}"),
    "numbers, 20 MB": _post(b'{"messages":[' + b"1," * 10_000_000 + b"1]}"),
    "messages": _post(b'{"messages":[' + b'{"role":"assistant"},' * 9_000 + b'{"role":"user","content":"x"}]}'),
    "depth": _post(b'{"messages":' + b"[" * 140_000),
    "escapes": _post(b'{"messages":[{"role":"user","content":"' + b"\\n" * (15 << 20) + b'"}]}'),
    "text": _chat("x y " * (7 << 20)),
    "a long prompt": _chat("x y " * 60_000),
    "tools": _tools(4 << 20),
    "names": _chat(tools=[{"type": "function", "function": {"name": "f" * (30 << 20)}}]),
    "too many pixels": _pictures(16),
    "many pixels": _pictures(2),
    "metrics": _request("GET /metrics HTTP/1.1", connections=8),
    "openapi": _request("GET /openapi.json HTTP/1.1", connections=8),
    "files": _request("GET /v1/files?limit=10000 HTTP/1.1", connections=8),
    "parts": _upload(b"--b\r\n\r\n\r\n" * 1_000_000),
    "headers of parts": _upload(b"--b\r\n" + b"a: b\r\n" * 1_000_000),
    "a file of line ends": _upload(
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"\r\n-" * 5_000_000
    ),
    **{f"schema: {name}": _schema(schema) for name, schema in DEADLY.items()},
}
"""Attacks with whole requests."""
