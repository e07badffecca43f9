"""What a person sees while it works: one moving line on a terminal, plain lines without one. All on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.status import Status

_PLAIN_EVERY = 2.0  # seconds between two plain progress lines that differ


class Display:
    """Progress of a command."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self._status: Status | None = None
        self._phase = ""
        self._said = ""
        self._said_at = 0.0
        self._began = time.monotonic()

    def phase(self, name: str, text: str) -> None:
        """A phase begins."""
        self._clear()
        self._phase = name
        self._said_at = time.monotonic()
        elapsed = f"{time.monotonic() - self._began:6.1f} s"
        self.console.print(f"[dim]{elapsed}[/]  [bold]{name:<9}[/]  {text}", soft_wrap=True)

    def progress(self, text: str) -> None:
        """How far the phase has come; said often, shown as fits."""
        if self.console.is_terminal:
            if self._status is None:
                self._status = self.console.status("")
                self._status.start()
            self._status.update(f"{self._phase}: {text}")
        elif text != self._said and time.monotonic() - self._said_at >= _PLAIN_EVERY:
            self._said, self._said_at = text, time.monotonic()
            self.console.print(f"{'':19}  {text}", soft_wrap=True)

    def line(self, text: str) -> None:
        """Something worth a line of its own."""
        self._clear()
        self.console.print(text, soft_wrap=True)

    @contextmanager
    def bytes(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar over `total` bytes; yields the function that is told how many more are done."""
        self._clear()
        if not self.console.is_terminal:
            done = 0

            def tell(more: int) -> None:
                nonlocal done
                done += more
                self.progress(f"{title}: {done / max(total, 1):.0%} of {total / (1 << 20):.1f} MiB")

            yield tell
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda more: bar.advance(task, more)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._clear()

    def _clear(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
