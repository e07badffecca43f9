"""What the engine's thread says, on its way to the streams that asyncio reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from service.engine.protocol import Delta
from service.engine.sequence import Event

__all__ = ["Outbox"]

PAUSE = 0.02
"""Seconds between two deliveries, if nobody waits for the first piece or the last. Each wakes another thread, which
takes the interpreter from the steps: with one client and steps of 1.7 ms, a delivery after every step cost a tenth of
the speed. Where steps take longer than this, every one is delivered."""


@dataclass
class Outbox:
    """Events are left by one thread, the engine's, and sent with one call into each event loop for all streams."""

    _streams: dict[asyncio.Queue[Event], _Stream] = field(default_factory=dict)
    _hurry: bool = False
    _sent: float = 0.0  # when, in monotonic seconds

    def to(self, loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event]) -> Callable[[Event], None]:
        """Make the function that leaves an event for `events`; texts that travel together become one."""
        stream = _Stream(loop, events)

        def leave(event: Event) -> None:
            self._streams[events] = stream
            self._hurry |= stream.leave(event)

        return leave

    def send(self, *, hurry: bool) -> None:
        """Deliver what was left, unless it can wait for what comes; `hurry` when nothing will."""
        now = time.monotonic()
        if not self._streams or not (hurry or self._hurry or now - self._sent >= PAUSE):
            return
        loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[Event], list[Event]]]] = {}
        for events, stream in self._streams.items():
            loops.setdefault(stream.loop, []).append((events, stream.take()))
        for loop, batch in loops.items():
            with suppress(RuntimeError):  # the loop that asked is closed
                loop.call_soon_threadsafe(_deliver, batch)
        self._streams.clear()
        self._hurry, self._sent = False, now


@dataclass
class _Stream:
    """Events for one reader that were not sent yet."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event]
    waiting: list[Event] = field(default_factory=list)
    begun: bool = False

    def leave(self, event: Event) -> bool:
        """Keep an event; returns whether its reader waits for it: the first, the last, an error."""
        hurry = not (self.begun and isinstance(event, Delta))
        self.begun = True
        if isinstance(event, Delta) and self.waiting and isinstance(before := self.waiting[-1], Delta):
            self.waiting[-1] = Delta(before.text + event.text, before.logprobs + event.logprobs)
        else:
            self.waiting.append(event)
        return hurry

    def take(self) -> list[Event]:
        taken, self.waiting = self.waiting, []
        return taken


def _deliver(batch: list[tuple[asyncio.Queue[Event], list[Event]]]) -> None:
    for queue, events in batch:
        for event in events:
            queue.put_nowait(event)
