"""Well-behaved clients beside hostile ones: they are answered as fast, by the same process, in bounded memory."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from tests.test_app import CHAT, HELLO
from tests.test_fuzz_api import SERVER
from tests.test_images import encoded

pytestmark = pytest.mark.alone

SECONDS = 3.0
ATTACKER = """
import http.client, sys
body = sys.stdin.buffer.read()
while True:
    client = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
    try:
        client.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        print(client.getresponse().status, flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


def pictures(count: int) -> bytes:
    data = base64.b64encode(encoded(Image.new("RGB", (7000, 7000), "red"), "WEBP")).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/webp;base64,{data}"}}
    return json.dumps({"messages": [{"role": "user", "content": [part] * count}]}).encode()


def tools(size: int) -> bytes:
    parameters = {f"p{number}": "x" * 400 for number in range(size // 400)}
    return json.dumps(
        HELLO | {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}
    ).encode()


BODIES = {
    "numbers, 1 MB": b'{"messages":[' + b"1," * 500_000 + b"1]}",
    "numbers, 20 MB": b'{"messages":[' + b"1," * 10_000_000 + b"1]}",
    "messages": b'{"messages":[' + b'{"role":"assistant"},' * 9_000 + b'{"role":"user","content":"x"}]}',
    "escapes": b'{"messages":[{"role":"user","content":"' + b"\\n" * (15 << 20) + b'"}]}',
    "tools": tools(4 << 20),
    "too many pixels": pictures(16),
    "many pixels": pictures(2),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, psutil.Process]]:
    program = SERVER.replace("max_pixels=10_000, max_body=1 << 20, ", "")
    program = program.replace("Server(config)", "import gc; gc.freeze(); Server(config)")  # as a worker does
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path_factory.mktemp("state"))], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        yield int(process.stdout.readline()), psutil.Process(process.pid)
        process.terminate()


def measure(port: int) -> tuple[list[float], list[float]]:
    """The sorted times of health checks and of chats, in seconds, over SECONDS; every answer is a 200."""
    times: tuple[list[float], list[float]] = [], []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for found, method, path, body in ((times[0], "GET", "/healthz", None), (times[1], "POST", CHAT, HELLO)):
                began = time.perf_counter()
                assert client.request(method, path, json=body).status_code == 200
                found.append(time.perf_counter() - began)
                time.sleep(0.01)
    return sorted(times[0]), sorted(times[1])


def p98(times: list[float]) -> float:
    return times[len(times) * 98 // 100]  # of a hundred


@pytest.fixture(scope="module")
def idle(server: tuple[int, psutil.Process]) -> tuple[list[float], list[float]]:
    measure(server[0])
    return measure(server[0])


@pytest.mark.parametrize("kind", BODIES)
def test_neighbours_do_not_notice(server: tuple[int, psutil.Process], idle: Any, kind: str) -> None:
    """Two attackers send without a pause, from the same address even."""
    port, process = server
    attackers = []
    try:
        for _ in range(2):
            attacker = subprocess.Popen(
                [sys.executable, "-c", ATTACKER, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            attackers.append(attacker)
            assert attacker.stdin
            attacker.stdin.write(BODIES[kind])
            attacker.stdin.close()
        time.sleep(0.5)
        health, chats = measure(port)
        memory = process.memory_info().rss
    finally:
        for attacker in attackers:
            attacker.kill()
            assert attacker.stdout
            answers = set(attacker.stdout.read().split())
            attacker.stdout.close()
            attacker.wait()
            assert answers <= {b"200", b"400", b"429"}
    assert process.is_running()
    # Twice what a quiet machine must keep.
    assert p98(health) <= max(0.1, 5 * p98(idle[0])), (health[-5:], p98(idle[0]))
    assert p98(chats) <= max(0.2, 5 * p98(idle[1])), (chats[-5:], p98(idle[1]))
    assert memory < 1500 << 20
