"""Something that the engine's thread is asked to do between two steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

__all__ = ["Errand"]


@dataclass(eq=False)
class Errand:
    """It is run once nobody is being answered; who sent it waits for `done`."""

    what: Callable[[], None]
    done: Future[None] = field(default_factory=Future)

    def refuse(self, error: BaseException) -> None:
        """Tell who waits that it will not be done."""
        if self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)

    def run(self) -> None:
        """Do it, and tell who waits how it went."""
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            self.what()
        except BaseException as error:  # whoever waits raises it
            self.done.set_exception(error)
        else:
            self.done.set_result(None)
