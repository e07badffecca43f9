"""A question to a slot, asked in a thread of its own: whoever needs the answer can watch the slot meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from typing import Generic, TypeVar

__all__ = ["Question"]

T = TypeVar("T")


class Question(Generic[T]):
    """Calls `ask`, which must have a deadline of its own, in a thread that does not keep the process from ending."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._future: Future[T] = Future()
        threading.Thread(target=self._run, args=(ask,), name="question", daemon=True).start()

    def _run(self, ask: Callable[[], T]) -> None:
        try:
            answer = ask()
        except BaseException as error:  # raised where the answer is needed
            self._future.set_exception(error)
        else:
            self._future.set_result(answer)

    @property
    def is_answered(self) -> bool:
        """Whether `ask` has returned or raised."""
        return self._future.done()

    def wait(self, seconds: float) -> bool:
        """Wait for the answer, at most so many seconds; returns whether there is one."""
        return bool(wait_for_futures([self._future], seconds).done)

    @property
    def answer(self) -> T:
        """What `ask` returned; raises what it raised. Waits for it."""
        return self._future.result()
