"""SIGINT, SIGTERM and SIGHUP: each raises KeyboardInterrupt, at a moment when what was begun can be undone."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["handle", "held"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_S = 0.01
"""After how many seconds an interrupt that Python discarded is raised again."""


class _State:
    depth = 0
    """How many `held` blocks are open."""
    is_pending = False
    """Whether a signal came in one of them."""


def handle() -> None:
    """Let the signals raise KeyboardInterrupt in the main thread from now on, but in no block of `held`.

    A signal that is ignored stays so, as SIGINT in the background of a shell script, and SIGHUP under nohup.
    A signal that comes in a finalizer or a weak reference's callback, whose exceptions Python discards, raises it
    a moment later; SIGALRM and the process's real-time timer are used for this.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    if getattr(sys.unraisablehook, "func", None) is not _raise_again:
        sys.unraisablehook = partial(_raise_again, sys.unraisablehook)


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


def _raise_again(otherwise: Callable[[UnraisableHookArgs], object], discarded: UnraisableHookArgs) -> None:
    if issubclass(discarded.exc_type, KeyboardInterrupt):
        # a timer of the kernel: a thread's start takes locks that the interrupted code may hold
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    else:
        otherwise(discarded)
