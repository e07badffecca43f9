"""Bad input to a serving host: clear errors, never a 500, nothing lost by it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx
import pytest

from deploy.journal import receipt
from tests.box import Box, wait_for

CHAT = "/v1/chat/completions"
GOOD = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}
BODIES = [
    b"",
    b"{",
    b"null",
    b"[" * 100_000,
    b"\xff\xfe\x00",
    json.dumps(GOOD | {"messages": []}).encode(),
    json.dumps(GOOD | {"temperature": "hot"}).encode(),
    json.dumps(GOOD | {"max_tokens": -1}).encode(),
    json.dumps(GOOD | {"max_tokens": 10**30}).encode(),
    json.dumps(GOOD | {"n": 99}).encode(),
    json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]}
    ).encode(),
    json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]}
    ).encode(),
]
NOT_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"GET\r\n\r\n",
    b"\x00" * 1000,
    b"GET /version HTTP/9.9\r\n\r\n",
    b"POST /version HTTP/1.1\r\nhost: x\r\ncontent-length: nine\r\n\r\n",
    b"POST /version HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
]


@pytest.mark.model
def test_the_service_answers_nonsense_with_clear_errors_and_loses_nothing(box: Box) -> None:
    """Every bad body gets a 4xx error object, every bad byte a 400 or a closed connection, and the account adds up."""
    before = receipt.snapshot(box.host)
    with httpx.Client(base_url=f"http://{box.listen}", trust_env=False, timeout=30) as client:
        for body in BODIES:
            answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
            assert 400 <= answer.status_code < 500, (body[:80], answer.text)
            assert answer.json()["error"]["message"]
        assert client.post(CHAT, content=b"x", headers={"content-type": "text/plain"}).status_code == 415
        assert client.get("/nowhere").json()["error"]["message"]
        assert client.delete(CHAT).status_code == 405
        assert client.get("/version", headers={"upgrade": "h2c", "connection": "upgrade"}).status_code == 200
        for raw in NOT_HTTP:
            assert _say(box, raw)[:12] in {b"", b"HTTP/1.1 400"}
        assert client.post(CHAT, json=GOOD).status_code == 200
    _say(box, b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{", leave=True)

    def settled() -> bool:
        account = receipt.compute(before, receipt.snapshot(box.host))
        return account.in_flight == 0 and account.client_aborted == 1

    wait_for(settled, 5, f"settling {receipt.compute(before, receipt.snapshot(box.host))}")
    account = receipt.compute(before, receipt.snapshot(box.host))
    assert account.adds_up
    assert account.lost == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("deploy",), 2, "VERSION"),
        (("deploy", "9.9.9"), 3, "no release 9.9.9"),
        (("deploy", "../../etc"), 3, "no release"),
        (("deploy", "1.1.0", "--bake", "soon"), 2, "duration"),
        (("release", "add", "/nonexistent"), 3, "not a directory"),
        (("release", "remove", "1.0.0"), 3, "in use"),
        (("history", "never"), 3, "no rollout never"),
        (("rollback",), 3, "nothing to go back to"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_glmctl_says_what_is_wrong_and_changes_nothing(
    stocked_live: Box, words: tuple[str, ...], code: int, said: str
) -> None:
    """Each mistake gets its exit code and words that name it; the version serves on."""
    done = stocked_live.glmctl(*words, expect=code)
    assert said in done.stderr
    assert stocked_live.get("/version").json()["version"] == "1.0.0"


def test_a_checkpoint_with_a_pickle_is_refused_by_name(
    stocked_live: Box, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Safetensors only: the file that may run code when loaded is named."""
    import shutil

    shutil.copytree(checkpoints["1.1.0"], tmp_path / "bad")
    (tmp_path / "bad/pytorch_model.bin").write_bytes(b"\x80\x04N.")
    assert "pytorch_model.bin" in stocked_live.glmctl("release", "add", str(tmp_path / "bad"), expect=3).stderr


def _say(box: Box, raw: bytes, *, leave: bool = False) -> bytes:
    host, port = box.listen.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(raw)
        if leave:
            return b""
        client.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while more := client.recv(65536):
                answer += more
        except ConnectionResetError:
            pass
        return answer
