"""Shared by the tests of batches: a fake chat service, the stored batches, and the batch service over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import uvicorn
from openai import DefaultHttpxClient, OpenAI
from openai.types import Batch

from service.api.application import Application
from service.batches.batch_params import BatchParams
from service.batches.claims import Claims
from service.batches.database import Database
from service.batches.files import Files
from service.batches.owner import current_owner, owner_of
from service.batches.runner import BatchRunner
from service.batches.service import BatchService
from service.batches.store import Batches
from service.chat.errors import ApiError
from service.engine import Priority
from service.identity import Identity
from service.settings import Settings

ENDPOINT: Final[Literal["/v1/chat/completions"]] = "/v1/chat/completions"
IDENTITY = Identity("1.2.0", "green", 3)


@dataclass
class FakeChat:
    """Echoes the last message after `pause` seconds; a message in `fail` raises the listed errors first, in order."""

    pause: float = 0.0
    fail: dict[str, list[Exception]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    priorities: set[str] = field(default_factory=set)
    running: int = 0
    max_running: int = 0
    cancelled: int = 0

    async def complete(self, document: dict[str, Any], *, priority: Priority = "interactive") -> dict[str, Any]:
        content = str(document["messages"][0]["content"])
        self.calls[content] += 1
        self.priorities.add(priority)
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        try:
            await asyncio.sleep(self.pause)
            if self.fail.get(content):
                raise self.fail[content].pop(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return {
            "object": "chat.completion",
            "choices": [{"message": {"role": "assistant", "content": f"re: {content}"}}],
        }


def settings(state: Path, **changes: Any) -> Settings:
    return Settings(slot="green", state=state, **({"state_reserve": 0} | changes))  # the disks of tests are small


def request_line(custom_id: Any, content: str | None = None, **changes: Any) -> dict[str, Any]:
    """One request of an input file."""
    body = {"messages": [{"role": "user", "content": content or custom_id}]}
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body} | changes


def jsonl(*lines: object) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def request_lines(count: int) -> bytes:
    """An input file of `count` requests, named task-0 and so on."""
    return jsonl(*(request_line(f"task-{number}") for number in range(count)))


def parse_jsonl(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


class BatchStore:
    """A state directory, shared by several processes with one runner each."""

    def __init__(self, state: Path, **changes: Any) -> None:
        self.settings = settings(state, **changes)
        self.database = Database(state)
        self.files = Files(self.database, self.settings)
        self.batches = Batches(self.database, self.files, self.settings)

    def create(self, content: bytes, key: str = "") -> str:
        """Upload a file and create its batch; returns the batch's id."""
        draft = self.files.draft(key)
        draft.write(content)
        file = self.files.add(draft, "in.jsonl", "batch")
        draft.close()
        batch_id: str = self.batches.create(BatchParams(file.id, ENDPOINT, "24h"), key=key)["id"]
        return batch_id

    def claims(self, owner: str) -> Claims:
        return Claims(self.database, owner)

    def runner(
        self, chat: FakeChat, owner: str, *, version: str = "1.2.0", rows: int = 4, serving: Callable[[], bool]
    ) -> BatchRunner:
        """A runner that acts as another process, named `owner`."""
        store = BatchStore(self.settings.state)
        identity = Identity(version, "green", 1)
        return BatchRunner(store.batches, chat, identity, rows=rows, serving=serving, owner=owner)

    def content(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of a file; empty without a file id."""
        if file_id is None:
            return []
        with self.files.read(file_id) as file:
            return parse_jsonl(file.read())

    async def wait_for_end(self, batch_id: str, seconds: float = 20) -> dict[str, Any]:
        """Wait until the batch has a final status."""
        deadline = time.monotonic() + seconds
        while (batch := self.batches.get(batch_id))["status"] not in ("completed", "failed", "cancelled", "expired"):
            assert time.monotonic() < deadline, batch
            await asyncio.sleep(0.02)
        return batch

    def orphans(self) -> set[str]:
        """Contents on disk without a row in the database."""
        on_disk = {path.name for path in (self.settings.state / "files").glob("*")}
        page = self.files.list(after=None, limit=10_000, newest_first=False, purpose=None)
        return on_disk - {file["id"] for file in page.data}


class Gate:
    """A gate that a test opens and closes."""

    def __init__(self, is_open: bool = True) -> None:
        self.is_open = is_open

    def __call__(self) -> bool:
        return self.is_open


def validated_batch(store: BatchStore, content: bytes, key: str = "") -> str:
    """Create and validate a batch; returns its id."""
    batch_id = store.create(content, key)
    me = current_owner()
    assert store.claims(me).poll((), (), capacity=0, transition=None).transition
    store.batches.validate(batch_id, me, lambda: False)
    assert store.batches.get(batch_id, key=key)["status"] == "in_progress"
    return batch_id


def claim(store: BatchStore, owner: str, capacity: int = 100) -> list[Any]:
    return store.claims(owner).poll((), (), capacity=capacity, transition=None).claims


def result_ids(batch: dict[str, Any], store: BatchStore) -> list[str]:
    return [entry["custom_id"] for kind in ("output", "error") for entry in store.content(batch[f"{kind}_file_id"])]


async def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  (a row in a database sets no event)
            await asyncio.sleep(0.01)


@contextmanager
def sleeping_process() -> Iterator[tuple[str, Callable[[], object]]]:
    """A running process: its owner name, and a function that kills it."""
    child = subprocess.Popen(["sleep", "600"])

    def kill() -> None:
        child.kill()
        child.wait()

    try:
        yield owner_of(child.pid), kill
    finally:
        kill()


@contextmanager
def served(state: Path, chat: FakeChat | None = None, *, key: str | None = None, **changes: Any) -> Iterator[OpenAI]:
    """The official client of a batch service on a real socket; without `key` it sends no API key."""
    service = BatchService(chat or FakeChat(), IDENTITY, settings(state, **changes), serving=lambda: True)
    app = Application(service.routes, IDENTITY, service.lifespan)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/v1"
        hooks = {"request": [_remove_key] if key is None else []}
        http_client = DefaultHttpxClient(event_hooks=hooks, base_url=url)
        with OpenAI(base_url=url, api_key=key or "none", max_retries=0, http_client=http_client) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def _remove_key(request: httpx.Request) -> None:
    if request.headers["authorization"] == "Bearer none":
        del request.headers["authorization"]


def upload(client: OpenAI, content: bytes, filename: str = "in.jsonl") -> str:
    """Upload an input file; returns its id."""
    return client.files.create(file=(filename, io.BytesIO(content)), purpose="batch").id


def create_batch(client: OpenAI, content: bytes, **options: Any) -> Batch:
    """Upload an input file and create its batch."""
    return client.batches.create(
        input_file_id=upload(client, content), endpoint=ENDPOINT, completion_window="24h", **options
    )


def wait_for_end(client: OpenAI, batch_id: str, seconds: float = 30) -> Batch:
    """Poll until the batch has a final status."""
    deadline = time.monotonic() + seconds
    while (batch := client.batches.retrieve(batch_id)).status not in ("completed", "failed", "cancelled", "expired"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def api_error(status: int, message: str = "no") -> ApiError:
    return ApiError(status, message, param="messages", code="because")
