"""The file `$RUNTIME/<slot>/<generation>/sleep`: while it exists, the workers of that generation hold no device memory.

A swap writes it, so that the weights of the old version rest in the host's memory while another one is loaded. A worker
that can sleep finishes its requests, takes no others, and sleeps; one that starts waits before it loads. Without the
file they wake up, or load.
"""

from __future__ import annotations

import stat
from pathlib import Path

from service.contract import atomic

__all__ = ["SleepOrder"]

_NAME = "sleep"


class SleepOrder:
    """The order to the generation in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / _NAME

    @property
    def is_given(self) -> bool:
        """Whether the workers are to sleep."""
        try:
            return stat.S_ISREG(self.path.lstat().st_mode)
        except OSError:
            return False

    def give(self) -> None:
        """Order them to sleep; they follow within 50 ms. Raises OSError."""
        atomic.write_text(self.path, "")

    def withdraw(self) -> None:
        """Order them to wake up; they follow within 50 ms. Raises OSError."""
        if self.path.is_symlink() or self.path.exists():
            atomic.remove(self.path)
