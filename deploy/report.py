"""A rollout's record as a person reads it."""

from __future__ import annotations

import io
import sys

from rich.console import Console
from rich.table import Table

from deploy.journal import Record
from deploy.receipt import Receipt

_WIDTH = 110


def text(record: Record) -> str:
    """The record with its receipt, as plain text of at most 110 columns."""
    out = io.StringIO()
    _print(Console(file=out, width=_WIDTH, highlight=False), record)
    return out.getvalue().rstrip()


def show(record: Record) -> None:
    """Print the record on stdout."""
    _print(stdout(), record)


def stdout() -> Console:
    """Where answers are printed: as wide as the terminal, or wide enough for our tables where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def summary(record: Record) -> str:
    """What happened, in one sentence."""
    seconds = f" in {record.seconds:.1f} s" if record.seconds is not None else ""
    switched = f"; it answered {record.switch_ms:.0f} ms after the rename" if record.switch_ms else ""
    if record.pause_ms is not None:
        switched += f"; requests waited for the weights, at most {record.pause_ms:.0f} ms"
    came = f" (before: {record.previous})" if record.previous else ""
    match record.outcome:
        case "done":
            return f"{record.version} is live in {record.slot}{came}: {record.kind} done{seconds}{switched}."
        case None:
            return f"{record.kind} of {record.version}{came}: under way, in {record.phase}."
        case outcome:
            why = f": {record.reason}" if record.reason else ""
            return f"{record.kind} of {record.version}{came}: {outcome}{why}."


def _print(console: Console, record: Record) -> None:
    console.print(f"[bold]{record.id}[/]  {summary(record)}", soft_wrap=True)
    if record.receipt is not None:
        console.print(_table(record.receipt))
        console.print(_verdict(record.receipt), soft_wrap=True)


def _table(receipt: Receipt) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("slot", "version"):
        table.add_column(title, no_wrap=True)
    names = ("accepted", "completed", "failed", "client_aborted", "in_flight", "handed_out", "adopted")
    for name in names:
        title = {"client_aborted": "aborted"}.get(name, name.replace("_", " "))
        table.add_column(title, justify="right", no_wrap=True)
    for line in receipt.lines:
        table.add_row(f"{line.slot} #{line.generation}", line.version, *(str(getattr(line, name)) for name in names))
    table.add_row("[bold]all", "", *(f"[bold]{getattr(receipt, name)}" for name in names))
    return table


def _verdict(receipt: Receipt) -> str:
    if not receipt.adds_up:
        return "The sums do not add up: a worker was killed between two accounts."
    if receipt.lost:
        cut = f", {receipt.cut} of them cut by the drain deadline" if receipt.cut else ""
        return f"{receipt.lost} of {receipt.accepted} requests failed{cut}. All are accounted for."
    return f"Nothing was lost: all {receipt.accepted} requests are accounted for."
