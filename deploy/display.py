"""Progress on stderr: one updated line on a terminal, plain lines elsewhere. Also figures as text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.status import Status
from rich.table import Table

__all__ = ["Display", "count", "duration", "size"]

_PLAIN_INTERVAL = 2.0  # seconds between two progress lines where stderr is not a terminal


class Display:
    """Progress of one command."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self._status: Status | None = None
        self._phase = ""
        self._last = ""
        self._last_at = 0.0
        self._started = time.monotonic()

    def phase(self, name: str, text: str) -> None:
        """Print the begin of a phase, with the seconds since the command started."""
        self._clear()
        self._phase = name
        self._last_at = time.monotonic()
        elapsed = f"{time.monotonic() - self._started:6.1f} s"
        if not self.console.is_terminal:
            self.console.print(f"[dim]{elapsed}[/]  [bold]{name:<9}[/]  {text}", soft_wrap=True)
            return
        row = Table.grid(padding=(0, 2, 0, 0))  # the text is wrapped at words, beside the name
        for width in (8, 9):
            row.add_column(no_wrap=True, min_width=width)
        row.add_column()
        row.add_row(f"[dim]{elapsed}[/]", f"[bold]{name}[/]", text)
        self.console.print(row)

    def progress(self, text: str) -> None:
        """Update the progress of the phase. Without a terminal, repeated and too frequent updates are dropped."""
        if self.console.is_terminal:
            if self._status is None:
                self._status = self.console.status("")
                self._status.start()
            self._status.update(f"{self._phase}: {text}")
        elif text != self._last and time.monotonic() - self._last_at >= _PLAIN_INTERVAL:
            self._last, self._last_at = text, time.monotonic()
            self.console.print(f"{'':19}  {text}", soft_wrap=True)

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        self.console.print(text, soft_wrap=not self.console.is_terminal)

    @contextmanager
    def bytes(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a progress bar over `total` bytes; yields a function that advances it by a number of bytes."""
        self._clear()
        if not self.console.is_terminal:
            done = 0

            def advance(more: int) -> None:
                nonlocal done
                done += more
                self.progress(f"{title}: {done / max(total, 1):.0%} of {size(total)}")

            yield advance
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda more: bar.advance(task, more)

    def close(self) -> None:
        """Remove the progress line."""
        self._clear()

    def _clear(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """Return seconds in the unit that suits them: `1.5 ms`, `14 ms`, `2.0 s`, `3 m 05 s`, `2 h 10 m`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} m"


def size(number: int) -> str:
    """Return a number of bytes in MiB or GiB."""
    return f"{number / (1 << 30):.1f} GiB" if number >= 1 << 30 else f"{number / (1 << 20):.1f} MiB"
