"""Answers that take longer than a proxy waits: nginx without settings of its own is between clients and host."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.box import Box, wait_for

WORDS = 15_000  # that the engine without a model writes in 30 s
SILENCE = 60  # seconds after which nginx closes a connection on which it gets nothing

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not shutil.which("nginx", path="/usr/sbin:/usr/bin"), reason="nginx is not installed"),
]

CONFIGURATION = """
daemon off;
pid {directory}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://{listen}; }} }}
}}
"""


@contextmanager
def proxy(box: Box, directory: Path) -> Iterator[httpx.Client]:
    """A client of an nginx that passes everything on to the host."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = directory / "nginx.conf"
    file.write_text(CONFIGURATION.format(directory=directory, port=port, listen=box.listen))
    nginx = subprocess.Popen(["/usr/sbin/nginx", "-c", file, "-p", directory])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=None, trust_env=False) as client:
            wait_for((directory / "pid").exists, what="nginx")
            yield client
    finally:
        nginx.terminate()
        nginx.wait(10)


def ask(client: httpx.Client, words: int, *, stream: bool) -> str:
    """Ask for so many words; returns the text of the whole answer."""
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": words, "stream": stream}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    if not stream:
        return str(answer.json()["choices"][0]["message"]["content"])
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_of_half_a_minute_is_complete_through_a_swap(box: Box, tmp_path: Path, stream: bool) -> None:
    """The old version finishes it before it gives up its place, and the next answer is of the new one."""
    found: list[str] = []
    with proxy(box, tmp_path) as client:
        asking = threading.Thread(target=lambda: found.append(ask(client, WORDS, stream=stream)))
        began = time.monotonic()
        asking.start()
        time.sleep(2)
        box.glmctl("deploy", "1.1.0", "--strategy", "swap", "--bake", "0", "--drain", "120s", timeout=200)
        asking.join()
        assert time.monotonic() - began > 30
        assert client.get("/version").json()["version"] == "1.1.0"
    assert len(found[0].split()) == WORDS


def test_a_stream_that_waits_longer_than_the_proxy_is_complete(
    box: Box, add_release: Callable[..., None], tmp_path: Path
) -> None:
    """It has to wait for a row: its head and comments come meanwhile, so that nginx does not close it."""
    settings = tmp_path / "engine.json"
    settings.write_text(json.dumps({"rows": 1}))
    add_release(box, "2.0.0", "--engine", str(settings))
    box.configure(threads=1, max_wait=200)
    box.glmctl("deploy", "2.0.0", "--bake", "0")
    with proxy(box, tmp_path) as client:
        first = threading.Thread(target=ask, args=(client, WORDS * SILENCE // 25), kwargs={"stream": True})
        first.start()
        time.sleep(1)
        began = time.monotonic()
        assert len(ask(client, 10, stream=True).split()) == 10
        assert time.monotonic() - began > SILENCE
        first.join()
