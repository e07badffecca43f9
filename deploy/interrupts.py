"""SIGINT, SIGTERM and SIGHUP: each raises KeyboardInterrupt, at a moment when what was begun can be undone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["handle", "held"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _State:
    depth = 0
    """How many `held` blocks are open."""
    is_pending = False
    """Whether a signal came in one of them."""


def handle() -> None:
    """Let the signals raise KeyboardInterrupt in the main thread from now on, but in no block of `held`.

    A signal that is ignored stays so, as SIGINT in the background of a shell script, and SIGHUP under nohup.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


@contextmanager
def held() -> Iterator[None]:
    """Delay an interrupt until the end of the block, which raises KeyboardInterrupt then. For short blocks only."""
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
        if _State.is_pending and not _State.depth:
            _State.is_pending = False
            raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if _State.depth:
        _State.is_pending = True
    else:
        raise KeyboardInterrupt
