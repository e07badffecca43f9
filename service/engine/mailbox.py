"""Messages between the engine thread and other threads: calls into it, events out of it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from service.engine.protocol import Delta
from service.engine.sequence import Event

__all__ = ["Dispatcher", "EngineCall"]

FLUSH_INTERVAL = 0.02
"""Seconds between two deliveries; the first and the last event of a stream are delivered at once. A delivery wakes the
event loop's thread, which takes the interpreter from the engine thread: one after every step cost a tenth of the
throughput of 1 client (steps of 1.7 ms) and a sixth of that of 16. If steps take longer, each is delivered."""

Delivery = tuple[asyncio.Queue[Event], Event]


@dataclass(eq=False)
class EngineCall:
    """A function that the engine thread runs between two steps, when no request is running or waiting.

    `future` completes with the function, or with the exception that it raised.
    """

    function: Callable[[], None]
    future: Future[None] = field(default_factory=Future)

    def run(self) -> None:
        """Run the function and complete the future; do nothing if the future was cancelled."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.function()
        except BaseException as error:  # raised in the thread that waits for the future
            self.future.set_exception(error)
        else:
            self.future.set_result(None)

    def reject(self, error: BaseException) -> None:
        """Complete the future with `error` without running the function."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass
class Dispatcher:
    """Delivers events from the engine thread to asyncio queues, with one call into each event loop for all streams.

    All methods, and the functions that `sender` returns, must be called from one thread, the engine's.
    """

    _pending: defaultdict[asyncio.AbstractEventLoop, list[Delivery]] = field(default_factory=lambda: defaultdict(list))
    _urgent: bool = False
    _flushed_at: float = 0.0  # monotonic seconds

    def sender(self, loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event]) -> Callable[[Event], None]:
        """Return a function that queues an event for `events`; the first, the last and errors are not delayed."""
        started = False

        def put(event: Event) -> None:
            nonlocal started
            self._pending[loop].append((events, event))
            self._urgent |= not (started and isinstance(event, Delta))
            started = True

        return put

    def flush(self, *, force: bool) -> None:
        """Deliver pending events if one is urgent, if FLUSH_INTERVAL has passed, or if `force` is set."""
        now = time.monotonic()
        if not self._pending or not (force or self._urgent or now - self._flushed_at >= FLUSH_INTERVAL):
            return
        for loop, deliveries in self._pending.items():
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(_deliver, deliveries)
        self._pending.clear()
        self._urgent, self._flushed_at = False, now


def _deliver(deliveries: list[Delivery]) -> None:
    for events, event in deliveries:
        events.put_nowait(event)
