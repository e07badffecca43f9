"""The batch runner: one per worker, processes requests of batches while the worker's gate is open."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from service.batches import lines
from service.batches.claims import MAX_TRIES, Assignment, Claim, Claims, Key, Outcome, Transition
from service.batches.database import Unavailable
from service.batches.owner import current_owner
from service.batches.store import Batches
from service.chat.errors import ApiError, ErrorBody, error_object
from service.engine import Priority
from service.identity import Identity

__all__ = ["BatchRunner", "Completer"]

GATE_INTERVAL = 0.1  # seconds between two checks of the gate
POLL_INTERVAL = 0.5  # seconds between two polls; bounds how long the claims of a dead worker stay unprocessed
IDLE_POLL_INTERVAL = 30.0  # seconds between two polls while no batch is unfinished and the database file is unchanged
RETRY_DELAY = 1.0  # seconds after an error of the database, and before new claims when the engine was busy
SWEEP_INTERVAL = 3600.0  # seconds between two sweeps of the files

log = logging.getLogger("service")


class Completer(Protocol):
    """The part of the chat service that the runner uses."""

    async def complete(self, document: dict[str, Any], *, priority: Priority = "interactive") -> dict[str, Any]:
        """Answer the body of a chat completion request; raises ApiError."""
        ...


class BatchRunner:
    """Processes up to `rows` requests concurrently, at batch priority; the engine serves interactive requests first.

    While the gate is open the runner polls the database: it stores outcomes and claims new requests. When the gate
    closes it cancels the running requests and releases its claims, and the live slot continues with them.
    """

    def __init__(
        self,
        batches: Batches,
        chat: Completer,
        identity: Identity,
        *,
        rows: int,
        serving: Callable[[], bool],
        owner: str | None = None,
    ) -> None:
        self._batches = batches
        self._database = batches.database
        self._chat = chat
        self._identity = identity
        self._rows = rows
        self._serving = serving
        self._claims = Claims(batches.database, owner or current_owner())
        self._running: dict[Key, asyncio.Task[Outcome]] = {}
        self._outcomes: list[Outcome] = []  # not stored yet
        self._transition: tuple[Transition, asyncio.Task[None]] | None = None
        self._cancel_transition = threading.Event()  # read by the transition's thread
        self._may_hold_claims = False
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._idle = False
        self._stamp: tuple[int, ...] = ()
        self._poll_at = self._idle_poll_at = self._retry_at = self._claim_at = self._sweep_at = 0.0  # monotonic
        self._error_logged = False

    def start(self) -> None:
        """Start the runner's task; does nothing if `rows` is 0."""
        if self._rows:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Release all claims and stop."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while True:
            try:
                if self._stopping or not self._serving():
                    await self._release()
                elif self._is_due():
                    await self._poll()
            except Unavailable as error:
                self._back_off(error)
            except Exception:
                log.exception("batches: polling failed; retrying in %g s", RETRY_DELAY)
                self._retry_at = time.monotonic() + RETRY_DELAY
            if self._stopping:
                return
            await self._sleep()

    async def _sleep(self) -> None:
        if time.monotonic() < self._retry_at:  # even if requests end meanwhile
            await asyncio.sleep(GATE_INTERVAL)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(GATE_INTERVAL):
                await self._wake.wait()

    def _is_due(self) -> bool:
        """Whether to poll the database. Without unfinished batches an unchanged file stamp makes a poll needless."""
        now = time.monotonic()
        if now < self._retry_at:
            return False
        if self._wake.is_set():
            return True
        if now < self._poll_at:
            return False
        self._poll_at = now + POLL_INTERVAL
        return not self._idle or now >= self._idle_poll_at or self._database.file.stamp() != self._stamp

    async def _poll(self) -> None:
        """Store outcomes, get the next assignment and start it."""
        self._wake.clear()
        now = time.monotonic()
        self._poll_at, self._idle_poll_at = now + POLL_INTERVAL, now + IDLE_POLL_INTERVAL
        self._stamp = self._database.file.stamp()
        if not self._stamp and not self._may_hold_claims:  # no database: no file was ever uploaded
            self._idle = True
            return
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_INTERVAL
            await self._database.call(self._batches.files.sweep)
        has_room = await self._database.call(self._batches.has_room)  # else results could not be stored
        outcomes = list(self._outcomes)  # of the same moment as what is running: no claim may be in neither
        capacity = 0 if now < self._claim_at or not has_room else self._rows - len(self._running)
        transition = self._transition[0].batch_id if self._transition else None
        self._may_hold_claims = True
        assignment = await self._database.call(
            self._claims.poll, outcomes, set(self._running), capacity=capacity, transition=transition
        )
        del self._outcomes[: len(outcomes)]
        self._error_logged = False
        self._idle = assignment.idle
        self._start(assignment)

    def _start(self, assignment: Assignment) -> None:
        for key in assignment.cancel:
            if key in self._running:
                self._running[key].cancel()
        for claim in assignment.claims:
            task = self._running[claim.key] = asyncio.create_task(self._process(claim))
            # not in the task itself: one that is cancelled before its first step runs no code
            task.add_done_callback(partial(self._end, claim.key))
        if assignment.transition is not None:
            self._cancel_transition.clear()
            self._transition = assignment.transition, asyncio.create_task(self._run_transition(assignment.transition))

    async def _release(self) -> None:
        """Cancel everything in progress and release its claims; the live slot claims them at its next poll."""
        self._cancel_transition.set()
        for task in list(self._running.values()):
            task.cancel()
        if not self._may_hold_claims:
            return
        transition = [self._transition[1]] if self._transition else []
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await self._database.call(self._claims.release, list(self._outcomes))  # before the transition's thread ends
        self._outcomes.clear()
        if transition:
            await asyncio.gather(*transition, return_exceptions=True)
            await self._database.call(self._claims.release, ())
        self._wake.clear()
        self._may_hold_claims, self._idle, self._poll_at = False, False, 0.0

    def _end(self, key: Key, task: asyncio.Task[Outcome]) -> None:
        """Record the outcome of a task that has ended; the request of a cancelled one is pending again."""
        del self._running[key]
        self._outcomes.append(Outcome(key, "pending") if task.cancelled() else task.result())
        self._wake.set()

    async def _process(self, claim: Claim) -> Outcome:
        """Process one request."""
        try:
            document = await self._database.call(self._read, claim)
            body = await self._chat.complete(document, priority="batch")
            return Outcome(claim.key, "completed", self._line(claim, 200, body, body.get("system_fingerprint")))
        except ApiError as error:
            if isinstance(error, Unavailable) or error.status in (429, 503):  # temporary: not a failed try
                self._claim_at = time.monotonic() + RETRY_DELAY
                return Outcome(claim.key, "pending")
            return self._failure(claim, error.status, error_object(error.status, str(error), error.param, error.code))
        except Exception:
            log.exception("batches: request %r failed", claim.custom_id)
            return self._failure(claim, 500, error_object(500, "internal error; the server's journal has the details"))

    def _failure(self, claim: Claim, status: int, document: ErrorBody) -> Outcome:
        """A client error is final; a server error is retried up to MAX_TRIES times."""
        if status >= 500 and claim.tries + 1 < MAX_TRIES:
            return Outcome(claim.key, "pending", counts_as_try=True)
        return Outcome(claim.key, "failed", self._line(claim, status, document))

    def _line(self, claim: Claim, status: int, body: Mapping[str, Any], version: str | None = None) -> str:
        version = version or self._identity.version
        return lines.response_line(claim.custom_id, status, body, version=version, slot=self._identity.slot)

    def _read(self, claim: Claim) -> dict[str, Any]:
        with self._batches.files.read(claim.input_file_id) as file:
            file.seek(claim.offset)
            return lines.request_body(file.read(claim.length))

    async def _run_transition(self, transition: Transition) -> None:
        """Validate or finalise a batch, in a thread."""
        owner = self._claims.owner
        try:
            if transition.kind == "validate":
                validate = self._batches.validate
                await self._database.call(validate, transition.batch_id, owner, self._cancel_transition.is_set)
            else:
                await self._database.call(self._batches.finalise, transition.batch_id, owner)
        except Unavailable as error:
            self._back_off(error)
        except Exception:
            log.exception("%s: cannot %s; retrying in %g s", transition.batch_id, transition.kind, RETRY_DELAY)
            self._retry_at = time.monotonic() + RETRY_DELAY
        finally:
            self._transition = None
            self._wake.set()

    def _back_off(self, error: Unavailable) -> None:
        """Delay the next poll; log the first of several errors in a row."""
        self._retry_at = time.monotonic() + RETRY_DELAY
        if not self._error_logged:
            self._error_logged = True
            log.error("%s", error)
