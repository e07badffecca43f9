"""Shared by the tests of weight swaps: one worker without a server, and the orders of a controller."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.chat.admission import Admission
from service.chat.request import parse_document
from service.chat.service import ChatService
from service.contract.processes import start_ticks
from service.contract.weights_order import WeightsOrderFile
from service.contract.worker_state import WorkerState, WorkerStateFile
from service.engine.model_engine import Limits, ModelEngine
from service.identity import Identity
from service.model.release import Release
from service.process.weight_swap import WeightSwapper
from service.settings import Settings

OLD, NEW = "1.0.0", "1.1.0"
STEPS = (("prepare", "prepared"), ("vacate", "vacated"), ("verify", "passed"))
"""The steps of an order before the slot's symlink is renamed, and the state in which the worker reports each."""


def describe_release(path: Path, **more: Any) -> None:
    """Write the release.json of a release directory; `more` are fields of it."""
    engine = {"rows": 2, "kv_tokens": 2048}
    (path / "release.json").write_text(json.dumps({"version": path.name, "engine": engine} | more))


class Worker:
    """The engine, chat service, state file and weight swapper of one worker of blue, without a server."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root, self.path = root, root / "weights_order.json"
        (root / "blue").symlink_to(f"releases/{OLD}")
        limits = Limits(max_prompt_tokens=600, stall=30)
        release = Release.read(root / "releases" / OLD)
        self.engine = ModelEngine.load(release, threads=1, limits=limits, progress=lambda *_: None)
        self.identity = Identity(OLD, "blue", 1)
        self.admission = Admission(self.identity)
        self.state = WorkerState.of_this_process(slot="blue", generation=1, version=OLD)
        state_file = WorkerStateFile(root / "1.json", self.state)
        self.chat = ChatService(self.engine, self.identity, Settings(slot="blue", **settings), self.admission)
        self.swapper = WeightSwapper(
            self.engine, self.admission, self.identity, state_file, WeightsOrderFile(root, "blue", root)
        )
        self.last_order: dict[str, Any] = {}
        self.admitted: list[str] = []
        """The version with which each request was admitted."""

    def order(self, step: str, **more: Any) -> None:
        """Replace the order by its next step; `more` are fields that change. The controller is this process."""
        pid = os.getpid()
        self.last_order = {
            "id": "1", "before": OLD, "after": NEW, "workers": [pid], "controller": pid,
            "start_ticks": start_ticks(pid), "seconds": 60.0, **self.last_order, "step": step, **more,
        }  # fmt: skip
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.last_order))
        temporary.replace(self.path)

    def point(self, version: str) -> None:
        """Rename the slot's symlink."""
        (self.root / ".new").symlink_to(f"releases/{version}")
        (self.root / ".new").rename(self.root / "blue")

    async def until(self, *states: str) -> str:
        """Wait until the swap is in one of these states, by the worker's state file, and return it."""
        deadline = time.monotonic() + 30
        while (state := self.report.get("state")) not in states:
            assert time.monotonic() < deadline, self.report
            await asyncio.sleep(0.005)
        return str(state)

    @property
    def report(self) -> dict[str, Any]:
        """The report of the swap in the worker's state file; empty before the first."""
        return json.loads((self.root / "1.json").read_text())["swap"] or {} if self.state.swap else {}

    async def ask(self, document: dict[str, Any], priority: Any = "interactive") -> tuple[str, str]:
        """Return the version that answered, and the text of all choices."""
        answer = await self.chat.create_completion(parse_document(document), priority, self.admitted.append)
        texts = [str(choice["message"]["content"]) for choice in answer["choices"]]
        return answer["system_fingerprint"], " | ".join(texts)

    async def ask_in_turn(self, *documents: dict[str, Any]) -> list[str]:
        """Return the texts of the answers to requests that are sent one after the other."""
        return [(await self.ask(document))[1] for document in documents]

    async def swap(self) -> None:
        """Order a whole swap, and wait until it is done."""
        for step, state in STEPS:
            self.order(step)
            assert await self.until(state, "failed") == state, self.report
        self.point(NEW)
        await self.until("done")
        self.order("done")


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds; fails after 30 s."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
