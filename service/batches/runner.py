"""The labourer: one in each worker, it answers requests of batches while the worker's gate is open."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from service.batches import lines
from service.batches.claims import TRIES, Chore, Claim, Claims, Key, Outcome, Turn
from service.batches.database import Unavailable
from service.batches.owner import myself
from service.batches.store import Batches
from service.chat.errors import ApiError, ErrorBody, error_object
from service.engine import Priority
from service.identity import Identity

__all__ = ["Completes", "Labourer"]

GATE = 0.1  # seconds: how soon a gate that opened or closed is noticed
LOOK = 0.5  # seconds between two looks for work, and how soon a dead worker's is taken up; unasked, when work ended
LONG = 30.0  # seconds between two looks while there is no batch and the database's file does not change
BREATH = 1.0  # seconds without new requests after the engine had no room, or the database could not be had
SWEEP = 3600.0  # seconds between two sweeps of the files

log = logging.getLogger("service")


class Completes(Protocol):
    """What the labourer needs of the chat service."""

    async def complete(self, document: dict[str, Any], *, priority: Priority = "interactive") -> dict[str, Any]:
        """Answer the body of a request; raises ApiError."""
        ...


class Labourer:
    """Runs up to `rows` requests at a time; the engine lets interactive ones go first.

    While the gate is open it takes turns with the database: it settles what ended and claims as much anew. When the
    gate closes it breaks off what it does and gives it back at once, for the live slot to take up.
    """

    def __init__(
        self,
        batches: Batches,
        chat: Completes,
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
        self._claims = Claims(batches.database, owner or myself())
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._ended: list[Outcome] = []  # and not written down yet
        self._chore: tuple[Chore, asyncio.Task[None]] | None = None
        self._halt = threading.Event()  # for the thread of a chore
        self._holds = False  # the database may hold claims of ours
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._idle = False
        self._stamp: tuple[int, ...] = ()
        self._look_at = self._long_look_at = self._not_before = self._claim_again_at = self._sweep_at = 0.0
        self._complained = False

    def start(self) -> None:
        """Begin to look for work; without rows there is none to look for."""
        if self._rows:
            self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Give everything back, and stop."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task

    async def _work(self) -> None:
        while True:
            try:
                if self._stopping or not self._serving():
                    await self._leave()
                elif self._is_due():
                    await self._take_turn()
            except Unavailable as error:
                self._complain(error)
            except Exception:
                log.exception("the work on batches failed; it is taken up again")
                self._not_before = time.monotonic() + BREATH
            if self._stopping:
                return
            await self._pause()

    async def _pause(self) -> None:
        if time.monotonic() < self._not_before:  # however much ends meanwhile
            await asyncio.sleep(GATE)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(GATE):
                await self._wake.wait()

    def _is_due(self) -> bool:
        """Whether to ask the database. While there is no batch, its file's stamp answers for it."""
        now = time.monotonic()
        if now < self._not_before:
            return False
        if self._wake.is_set():
            return True
        if now < self._look_at:
            return False
        self._look_at = now + LOOK
        return not self._idle or now >= self._long_look_at or self._database.stamp() != self._stamp

    async def _take_turn(self) -> None:
        """Settle what ended, learn what to do and begin it."""
        self._wake.clear()
        now = time.monotonic()
        self._look_at, self._long_look_at = now + LOOK, now + LONG
        self._stamp = self._database.stamp()
        if not self._stamp and not self._holds:  # nobody ever sent a file
            self._idle = True
            return
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP
            await self._database.call(self._batches.files.sweep)
        ended = list(self._ended)
        room = 0 if now < self._claim_again_at else self._rows - len(self._running)
        chore = self._chore[0].batch_id if self._chore else None
        self._holds = True
        turn = await self._database.call(self._claims.take_turn, ended, set(self._running), room=room, chore=chore)
        del self._ended[: len(ended)]
        self._complained = False
        self._idle = turn.idle
        self._begin(turn)

    def _begin(self, turn: Turn) -> None:
        for key in turn.stop:
            if key in self._running:
                self._running[key].cancel()
        for claim in turn.claims:
            self._running[claim.key] = asyncio.create_task(self._answer(claim))
        if turn.chore is not None:
            self._halt.clear()
            self._chore = turn.chore, asyncio.create_task(self._do(turn.chore))

    async def _leave(self) -> None:
        """Break off what is under way and give it back, so that the live slot takes it up at its next look."""
        self._halt.set()
        for task in list(self._running.values()):
            task.cancel()
        if not self._holds:
            return
        chore = [self._chore[1]] if self._chore else []
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await self._database.call(self._claims.put_back, list(self._ended))  # at once, whatever the chore still does
        self._ended.clear()
        if chore:
            await asyncio.gather(*chore, return_exceptions=True)
            await self._database.call(self._claims.put_back, ())
        self._wake.clear()
        self._holds, self._idle, self._look_at = False, False, 0.0

    async def _answer(self, claim: Claim) -> None:
        """Work on one request; however that ends, its outcome is noted."""
        outcome = Outcome(claim.key, "pending")
        try:
            outcome = await self._outcome(claim)
        finally:
            del self._running[claim.key]
            self._ended.append(outcome)
            self._wake.set()

    async def _outcome(self, claim: Claim) -> Outcome:
        try:
            document = await self._database.call(self._read, claim)
            body = await self._chat.complete(document, priority="batch")
            return Outcome(claim.key, "completed", self._line(claim, 200, body, body.get("system_fingerprint")))
        except ApiError as error:
            if isinstance(error, Unavailable) or error.status in (429, 503):  # not now
                self._claim_again_at = time.monotonic() + BREATH
                return Outcome(claim.key, "pending")
            return self._failure(claim, error.status, error_object(error.status, str(error), error.param, error.code))
        except Exception:
            log.exception("request %r of a batch failed", claim.custom_id)
            return self._failure(claim, 500, error_object(500, "the server failed at this request"))

    def _failure(self, claim: Claim, status: int, document: ErrorBody) -> Outcome:
        """The request's own fault is final; ours is tried again, but not for ever."""
        if status >= 500 and claim.tries + 1 < TRIES:
            return Outcome(claim.key, "pending", counts=True)
        return Outcome(claim.key, "failed", self._line(claim, status, document))

    def _line(self, claim: Claim, status: int, body: Mapping[str, Any], version: str | None = None) -> str:
        who = self._identity
        return lines.answered(claim.custom_id, status, body, version=version or who.version, slot=who.slot)

    def _read(self, claim: Claim) -> dict[str, Any]:
        with self._batches.files.read(claim.input_file_id) as file:
            file.seek(claim.offset)
            return lines.document(file.read(claim.length))

    async def _do(self, chore: Chore) -> None:
        """Take a batch over a threshold, in a thread."""
        owner = self._claims.owner
        try:
            if chore.what == "validate":
                validate = self._batches.validate
                await self._database.call(validate, chore.batch_id, owner, lambda: not self._halt.is_set())
            else:
                await self._database.call(self._batches.finalise, chore.batch_id, owner)
        except Unavailable as error:
            self._complain(error)
        except Exception:
            log.exception("batch %s: cannot %s; it is tried again", chore.batch_id, chore.what)
            self._not_before = time.monotonic() + BREATH
        finally:
            self._chore = None
            self._wake.set()

    def _complain(self, error: Unavailable) -> None:
        """Say so once, and take a breath."""
        self._not_before = time.monotonic() + BREATH
        if not self._complained:
            self._complained = True
            log.error("%s", error)
