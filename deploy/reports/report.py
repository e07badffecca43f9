"""The end of a rollout as text: a one-sentence summary, and the receipt as a table."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape

from deploy.display import count, duration
from deploy.journal.receipt import Receipt
from deploy.journal.record import Record
from deploy.reports.tables import receipt_table
from service.contract.devices import CPU

__all__ = [
    "WIDTH",
    "clock_time",
    "gpus",
    "interruption",
    "load_parts",
    "receipt_sentence",
    "show",
    "stdout",
    "summary",
    "text",
    "workers",
]

WIDTH = 110  # columns where the terminal's width is unknown


def text(record: Record, width: int | None = None) -> str:
    """Return summary and receipt as plain text of at most `width` columns; None: those of `stdout`."""
    out = io.StringIO()
    _print(Console(file=out, width=width or stdout().width, highlight=False), record, wrap=bool(width) or _is_screen())
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def show(record: Record) -> None:
    """Print summary and receipt on stdout."""
    _print(stdout(), record, wrap=_is_screen())


def stdout() -> Console:
    """Return a console on stdout, as wide as the terminal, or `WIDTH` columns without one."""
    return Console(highlight=False, width=None if _is_screen() else WIDTH)


def _is_screen() -> bool:
    return sys.stdout.isatty()


def summary(record: Record) -> str:
    """Return the outcome of a rollout, or its phase while it is under way, in one sentence."""
    seconds = f" in {record.seconds:.1f} s" if record.seconds is not None else ""
    details = f"; first response {record.switch_ms:.0f} ms after the rename" if record.switch_ms else ""
    if record.pause_ms is not None:
        details += f"; the longest wait was {duration(record.pause_ms / 1000)}"
    if record.staged is not None:
        details += f"; the new weights came from {record.staged}"
    before = f" (before: {record.previous})" if record.previous else ""
    match record.outcome:
        case "done":
            return f"{record.version} is live in {record.slot}{before}: {record.kind} done{seconds}{details}."
        case None:
            return f"{record.kind} of {record.version}{before}: under way, in {record.phase}."
        case outcome:
            reason = f": {record.reason}" if record.reason else ""
            return f"{record.kind} of {record.version}{before}: {outcome}{reason}."


def interruption(record: Record) -> str:
    """Return in which phase the controller of an unfinished rollout died, and what can be done, in one sentence."""
    left = record.seconds_unwatched
    unwatched = f", {duration(left)} unwatched" if left else ""
    back = ", or `glmctl rollback`" if left is not None else ""
    return f"the {record.kind} of {record.version} was interrupted in {record.phase}{unwatched}: `glmctl resume`{back}"


def load_parts(load: Mapping[str, float]) -> str:
    """Return the parts of a load as text, e.g. "imports 2.1 s, reading 3.0 s"; without those of less than 10 ms."""
    return ", ".join(f"{part} {duration(seconds)}" for part, seconds in load.items() if seconds >= 0.01)


def gpus(slot: Mapping[str, Any]) -> list[str]:
    """Return the GPUs of a slot's workers, e.g. `cuda:0`; `slot` is one of a status document."""
    return [one["device"] for one in slot["devices"] if one["device"] != CPU]


def workers(slot: Mapping[str, Any]) -> str:
    """Return the number of a slot's workers with their GPUs as text, e.g. "2 workers on cuda:0, cuda:1"."""
    found = gpus(slot)
    return count(slot["workers"], "worker") + (f" on {', '.join(found)}" if found else "")


def clock_time(at: str | None) -> str:
    """Return an ISO 8601 time as HH:MM:SS in this host's time zone; empty if there is none or it is malformed."""
    try:
        return f"{datetime.fromisoformat(at or '').astimezone():%H:%M:%S}"
    except ValueError:
        return ""


def receipt_sentence(receipt: Receipt) -> str:
    """Return whether requests were lost, in one or two sentences."""
    if receipt.unadopted:
        were = "connection was" if receipt.unadopted == 1 else "connections were"
        return f"{receipt.unadopted} client {were} handed over and not received: their clients were disconnected."
    if not receipt.adds_up:
        return "The counts do not add up: a worker was killed before it wrote its last counts."
    if receipt.lost:
        cut = f", {receipt.cut} of them cut by the drain deadline" if receipt.cut else ""
        if receipt.unread:
            sent = count(receipt.accepted + receipt.unread, "request")
            unread = f", {receipt.unread} of them unread by frozen workers"
            return f"At least {receipt.lost} of {sent} failed{cut}{unread}."
        return f"{receipt.lost} of {count(receipt.accepted, 'request')} failed{cut}. All are accounted for."
    match receipt.accepted:
        case 0:
            return "No request was accepted, so that this receipt proves nothing."
        case accepted if accepted == receipt.probes:
            return f"No client sent a request; those of glmctl itself ({accepted}) are accounted for."
        case 1:
            return "Nothing was lost: the one request is accounted for."
        case accepted:
            return f"Nothing was lost: all {accepted} requests are accounted for."


def _print(console: Console, record: Record, *, wrap: bool) -> None:
    """Print; sentences are wrapped at words, or left to the reader as one line each."""
    console.print(f"[bold]{record.id}[/]  {escape(summary(record))}", soft_wrap=not wrap)
    if record.receipt is not None:
        console.print(receipt_table(record.receipt, console.width))
        console.print(receipt_sentence(record.receipt), soft_wrap=not wrap)
