"""What the tests of batches share: a chat service that does as it is told, and the office it works for, over HTTP."""

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

import uvicorn
from openai import OpenAI
from openai.types import Batch
from starlette.applications import Starlette

from service.batches.claims import Claims
from service.batches.database import Database
from service.batches.files import Files
from service.batches.owner import name
from service.batches.runner import Labourer
from service.batches.service import Office
from service.batches.store import Batches, Order
from service.chat.errors import HANDLERS, ApiError
from service.engine import Priority
from service.identity import Identity
from service.settings import Settings

ENDPOINT: Final[Literal["/v1/chat/completions"]] = "/v1/chat/completions"
IDENTITY = Identity("1.2.0", "green", 3)


@dataclass
class FakeChat:
    """Answers with what it was asked, after `pause` seconds; a conversation named in `fail` raises that instead."""

    pause: float = 0.0
    fail: dict[str, list[Exception]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    priorities: set[str] = field(default_factory=set)
    at_once: int = 0
    most_at_once: int = 0
    cancelled: int = 0

    async def complete(self, document: dict[str, Any], *, priority: Priority = "interactive") -> dict[str, Any]:
        said = str(document["messages"][0]["content"])
        self.asked[said] += 1
        self.priorities.add(priority)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.pause)
            if self.fail.get(said):
                raise self.fail[said].pop(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1
        return {"object": "chat.completion", "choices": [{"message": {"role": "assistant", "content": f"re: {said}"}}]}


def settings(state: Path, **changes: Any) -> Settings:
    return Settings(slot="green", state=state, **changes)


def line(custom_id: Any, said: str | None = None, **changes: Any) -> dict[str, Any]:
    """One request of an input file."""
    body = {"messages": [{"role": "user", "content": said or custom_id}]}
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body} | changes


def jsonl(*documents: object) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in documents)


def requests(many: int) -> bytes:
    return jsonl(*(line(f"task-{number}") for number in range(many)))


def read(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(one) for one in content.splitlines()]


class Desk:
    """The state directory as several processes use it, each with a labourer of its own."""

    def __init__(self, state: Path, **changes: Any) -> None:
        self.settings = settings(state, **changes)
        self.database = Database(state)
        self.files = Files(self.database)
        self.batches = Batches(self.database, self.files, self.settings)

    def order(self, content: bytes) -> str:
        """Upload and begin a batch; its id."""
        draft = self.files.draft()
        draft.write(content)
        file = self.files.add(draft, "in.jsonl", "batch")
        draft.close()
        batch_id: str = self.batches.create(Order(file.id, ENDPOINT, "24h"))["id"]
        return batch_id

    def claims(self, owner: str) -> Claims:
        return Claims(self.database, owner)

    def labourer(
        self, chat: FakeChat, owner: str, *, version: str = "1.2.0", rows: int = 4, serving: Callable[[], bool]
    ) -> Labourer:
        """A labourer that stands for another process: `owner` is its name."""
        office = Desk(self.settings.state)
        identity = Identity(version, "green", 1)
        return Labourer(office.batches, chat, identity, rows=rows, serving=serving, owner=owner)

    def content(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of a file; none of no file."""
        if file_id is None:
            return []
        with self.files.read(file_id) as file:
            return read(file.read())

    async def ended(self, batch_id: str, seconds: float = 20) -> dict[str, Any]:
        """Wait until the batch is in its last status."""
        deadline = time.monotonic() + seconds
        while (batch := self.batches.get(batch_id))["status"] not in ("completed", "failed", "cancelled", "expired"):
            assert time.monotonic() < deadline, batch
            await asyncio.sleep(0.02)
        return batch

    def leftovers(self) -> set[str]:
        """Bytes on the disk that belong to no file."""
        found = {path.name for path in (self.settings.state / "files").glob("*")}
        page = self.files.list(after=None, limit=10_000, newest_first=False, purpose=None)
        return found - {one["id"] for one in page.data}


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  (a row in a database sets no event)
            await asyncio.sleep(0.01)


@contextmanager
def process() -> Iterator[tuple[str, Callable[[], object]]]:
    """The name of a process that lives, and what kills it."""
    child = subprocess.Popen(["sleep", "600"])

    def kill() -> None:
        child.kill()
        child.wait()

    try:
        yield name(child.pid), kill
    finally:
        kill()


@contextmanager
def served(state: Path, chat: FakeChat | None = None, **changes: Any) -> Iterator[OpenAI]:
    """The official client of an office that is served over a real socket."""
    office = Office(chat or FakeChat(), IDENTITY, settings(state, **changes), serving=lambda: True)
    app = Starlette(routes=office.routes, exception_handlers=HANDLERS, lifespan=office.lifespan)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def upload(client: OpenAI, content: bytes, filename: str = "in.jsonl") -> str:
    """Send an input file; its id."""
    return client.files.create(file=(filename, io.BytesIO(content)), purpose="batch").id


def begin(client: OpenAI, content: bytes, **more: Any) -> Batch:
    """Send an input file and begin its batch."""
    return client.batches.create(
        input_file_id=upload(client, content), endpoint=ENDPOINT, completion_window="24h", **more
    )


def await_end(client: OpenAI, batch_id: str, seconds: float = 30) -> Batch:
    """Poll as clients do."""
    deadline = time.monotonic() + seconds
    while (batch := client.batches.retrieve(batch_id)).status not in ("completed", "failed", "cancelled", "expired"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def refusal(status: int, message: str = "no") -> ApiError:
    return ApiError(status, message, param="messages", code="because")
