"""The liveness of a slot: whether its workers still run, and whether it answers a small request.

A worker that is stopped, hangs or spins keeps its process, its connections and its listening sockets: systemd and
Gunicorn find it after half a minute, and its clients wait for as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import NamedTuple, TypeVar

from deploy.errors import NotReady
from deploy.host import Host
from deploy.rollout.question import Question
from deploy.rollout.slot_client import SlotClient
from service.contract.generations import Generation, generations
from service.contract.slots import generation_directory
from service.contract.worker_state import WorkerState

__all__ = ["SILENCE", "Frozen", "Heartbeats", "Liveness", "Silent", "answer_of", "require_answer"]

SILENCE = 1.75
"""Seconds without a sign of life after which a slot counts as frozen: nearly nine heartbeats of a worker. What takes
longer, such as tokens and images, is computed in other threads than the one that writes them."""
_POLL = 0.05  # seconds between two looks
_MAX_STEP = 0.25  # seconds
_PROBE_PAUSE = 0.25  # seconds between an answer and the next question

T = TypeVar("T")


class Frozen(NotReady):
    """A slot has given no sign of life for SILENCE seconds."""


class _Clock:
    """The seconds that this process has looked for: a pause of its own, as on a busy machine, counts for 0.25 s."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._at = time.monotonic()

    def look(self) -> float:
        now = time.monotonic()
        self.seconds += min(now - self._at, _MAX_STEP)
        self._at = now
        return self.seconds


class Silent(NamedTuple):
    """A worker that has written nothing for so many seconds."""

    worker: WorkerState
    generation: Generation
    seconds: float


class Heartbeats:
    """The writes of a slot's workers to their state files, by which those that serve or leave show that they run."""

    def __init__(self, host: Host, slot: str) -> None:
        self.slot = slot
        self._host = host
        self._clock = _Clock()
        self._seen: dict[int, tuple[int, float]] = {}  # by pid: the file's modification time, and when it was found

    def silent(self) -> list[Silent]:
        """Return the workers that have written nothing for SILENCE seconds. To be called several times a second."""
        now, silent = self._clock.look(), []
        seen: dict[int, tuple[int, float]] = {}
        for generation in generations(self._host.runtime, self.slot):
            directory = generation_directory(self._host.runtime, self.slot, generation.generation)
            for worker in generation.alive_workers:
                if worker.phase not in {"ready", "leaving"}:
                    continue
                try:
                    written = (directory / f"{worker.pid}.json").stat().st_mtime_ns
                except OSError:
                    continue
                known = self._seen.get(worker.pid)
                seen[worker.pid] = known if known and known[0] == written else (written, now)
                if (seconds := now - seen[worker.pid][1]) >= SILENCE:
                    silent.append(Silent(worker, generation, seconds))
        self._seen = seen
        return silent


class Liveness:
    """Heartbeats and answers of a slot that serves or is about to."""

    def __init__(self, host: Host, slot: str, heartbeats: Heartbeats | None = None) -> None:
        self._heartbeats = heartbeats or Heartbeats(host, slot)
        self.is_frozen = False
        """Whether `require` has raised Frozen."""
        self._host, self._slot = host, slot
        self._clock = _Clock()
        self._question: Question[str] | None = None
        self._answered_at = self._ask_at = 0.0

    def require(self) -> None:
        """Raise Frozen if a worker, or the slot, has given no sign of life. To be called several times a second."""
        fault = None
        if silent := self._heartbeats.silent():
            fault = f"worker {silent[0].worker.pid} gave no sign of life for {SILENCE:g} s"
        elif self._seconds_without_answer() >= SILENCE:
            fault = f"it answered no request on its http.sock for {SILENCE:g} s"
        if fault:
            self.is_frozen = True
            raise Frozen(f"{self._slot} is frozen: {fault}")

    def _seconds_without_answer(self) -> float:
        """Ask a small request when it is due; its thread waits for the answer."""
        now = self._clock.look()
        if self._question and self._question.is_answered:
            with suppress(NotReady):
                self._question.answer  # noqa: B018
                self._answered_at = now
            self._question, self._ask_at = None, now + _PROBE_PAUSE
        if self._question is None and now >= self._ask_at:
            self._question = Question(self._client.version)
        return now - self._answered_at

    @cached_property
    def _client(self) -> SlotClient:
        return SlotClient(self._host, self._slot, timeout=SILENCE)


def require_answer(host: Host, slot: str) -> None:
    """Wait for an answer of a slot that is to serve; raises Frozen after SILENCE seconds, NotReady after twice that."""
    client, liveness = SlotClient(host, slot, timeout=2 * SILENCE), Liveness(host, slot)  # silence is found first
    answer_of(client.version, liveness.require)


def answer_of(ask: Callable[[], T], watch: Callable[[], None]) -> T:
    """Ask in a thread, and call `watch` several times a second until there is an answer; raises what either raises."""
    question = Question(ask)
    while not question.wait(_POLL):
        watch()
    return question.answer
