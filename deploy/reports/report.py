"""A rollout's record as a person reads it."""

from __future__ import annotations

import io
import sys
from datetime import datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy.journal.journal import Record
from deploy.journal.receipt import Receipt

WIDTH = 110
_COLUMNS = {
    "accepted": "accepted",
    "completed": "completed",
    "failed": "failed",
    "client_aborted": "aborted",
    "in_flight": "in\nflight",
    "handed_out": "handed\nover",
    "adopted": "adopted",
    "drained": "drained",
    "cut": "cut",
}


def text(record: Record) -> str:
    """The record with its receipt, as plain text of at most 110 columns."""
    out = io.StringIO()
    _print(Console(file=out, width=WIDTH, highlight=False), record)
    return out.getvalue().rstrip()


def show(record: Record) -> None:
    """Print the record on stdout."""
    _print(stdout(), record)


def stdout() -> Console:
    """Where answers are printed: as wide as the terminal, or wide enough for our tables where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def summary(record: Record) -> str:
    """What happened, in one sentence."""
    seconds = f" in {record.seconds:.1f} s" if record.seconds is not None else ""
    switched = f"; it answered {record.switch_ms:.0f} ms after the rename" if record.switch_ms else ""
    if record.pause_ms is not None:
        switched += f"; the longest wait was {span(record.pause_ms / 1000)}"
    came = f" (before: {record.previous})" if record.previous else ""
    match record.outcome:
        case "done":
            return f"{record.version} is live in {record.slot}{came}: {record.kind} done{seconds}{switched}."
        case None:
            return f"{record.kind} of {record.version}{came}: under way, in {record.phase}."
        case outcome:
            why = f": {record.reason}" if record.reason else ""
            return f"{record.kind} of {record.version}{came}: {outcome}{why}."


def span(seconds: float | None) -> str:
    """A time as a person says it."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} m"


def clock(at: str | None) -> str:
    """A time of a journal as a clock on this host shows it."""
    try:
        return f"{datetime.fromisoformat(at or '').astimezone():%H:%M:%S}"
    except ValueError:
        return ""


def _print(console: Console, record: Record) -> None:
    console.print(f"[bold]{record.id}[/]  {escape(summary(record))}", soft_wrap=True)
    if record.receipt is not None:
        console.print(account(record.receipt))
        console.print(verdict(record.receipt), soft_wrap=True)


def account(receipt: Receipt) -> Table:
    """The receipt, a line for each generation."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("slot", "version"):
        table.add_column(f"\n{title}", no_wrap=True)
    for title in _COLUMNS.values():
        table.add_column(title if "\n" in title else f"\n{title}", justify="right")
    for line in receipt.lines:
        table.add_row(f"{line.slot} #{line.generation}", line.version, *(str(getattr(line, name)) for name in _COLUMNS))
    table.add_row("[bold]all", "", *(f"[bold]{getattr(receipt, name)}" for name in _COLUMNS))
    return table


def verdict(receipt: Receipt) -> str:
    """Whether anything was lost, in one sentence."""
    if not receipt.adds_up:
        return "The sums do not add up: a worker was killed between two accounts."
    if receipt.lost:
        cut = f", {receipt.cut} of them cut by the drain deadline" if receipt.cut else ""
        return f"{receipt.lost} of {receipt.accepted} requests failed{cut}. All are accounted for."
    return f"Nothing was lost: all {receipt.accepted} requests are accounted for."
