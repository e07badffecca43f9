"""What the engine's thread says, on its way to the streams that asyncio reads."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from service.engine.protocol import Delta
from service.engine.sequence import Event

__all__ = ["Outbox"]

PAUSE = 0.02
"""Seconds between two deliveries, if nobody waits for a first piece or a last. Each wakes another thread, which takes
the interpreter from the steps: deliveries after every step cost a tenth of the speed of 1 client (steps of 1.7 ms), and
a sixth of that of 16. Where steps take longer than this, every one is delivered."""

Mail = tuple[asyncio.Queue[Event], Event]


@dataclass
class Outbox:
    """Events are left by one thread, the engine's, and sent with one call into each event loop for all streams."""

    _mail: defaultdict[asyncio.AbstractEventLoop, list[Mail]] = field(default_factory=lambda: defaultdict(list))
    _hurry: bool = False
    _sent: float = 0.0  # when, in monotonic seconds

    def to(self, loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event]) -> Callable[[Event], None]:
        """Make the function that leaves an event for `events`: the first, the last and an error will not wait."""
        begun = False

        def leave(event: Event) -> None:
            nonlocal begun
            self._mail[loop].append((events, event))
            self._hurry |= not (begun and isinstance(event, Delta))
            begun = True

        return leave

    def send(self, *, hurry: bool) -> None:
        """Deliver what was left, unless it can wait for what comes; `hurry` when nothing will."""
        now = time.monotonic()
        if not self._mail or not (hurry or self._hurry or now - self._sent >= PAUSE):
            return
        for loop, mail in self._mail.items():
            with suppress(RuntimeError):  # the loop that asked is closed
                loop.call_soon_threadsafe(_deliver, mail)
        self._mail.clear()
        self._hurry, self._sent = False, now


def _deliver(mail: list[Mail]) -> None:
    for events, event in mail:
        events.put_nowait(event)
