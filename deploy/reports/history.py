"""Past rollouts as a person reads them: all of them in a list, or one with everything that is known of it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.analysis.comparison import Metric, Verdict
from deploy.journal.journal import HookRun, Record
from deploy.reports import report, story
from deploy.reports.report import WIDTH, clock, span
from deploy.reports.timeline import stages

__all__ = ["listing", "text"]

_COMMAND, _SAID = 42, 36  # columns for a hook and for what it said


def listing(records: Sequence[Record]) -> str:
    """A line on each, newest last."""
    table = _table("rollout", "what", "version", "before", "outcome")
    for title in ("took", "longest pause", "lost"):
        table.add_column(title, justify="right", no_wrap=True)
    for record in records:
        table.add_row(
            record.id,
            record.kind,
            record.version,
            record.previous or "-",
            record.outcome or f"in {record.phase}",
            span(record.seconds),
            _milliseconds(record.pause_ms),
            "-" if record.receipt is None else str(record.receipt.lost),
        )
    return _plain([table])


def text(record: Record) -> str:
    """One rollout: its phases, how the candidate was judged, hooks, the account of its requests, and what it meant."""
    return _plain(_parts(record))


def _parts(record: Record) -> Iterator[RenderableType]:
    yield Text(f"{record.id}  {report.summary(record)}")
    if record.steps:
        yield ""
        yield _phases(record)
    if record.analysis:
        yield ""
        yield _analysis(record.analysis)
        for one in record.analysis:
            if one.reason:
                yield Text(f"{one.window}: {one.outcome}, {one.reason}")
    if record.hooks:
        yield ""
        yield _hooks(record.hooks)
    if record.receipt is not None:
        yield ""
        yield report.account(record.receipt)
        yield report.verdict(record.receipt)
    if told := story.tell(record):
        yield Text(told)


def _phases(record: Record) -> Table:
    zone = datetime.now().astimezone().tzname()
    table = _table("phase", f"began ({zone})")
    table.add_column("seconds", justify="right")
    table.add_column("")
    for stage in stages(record):
        if stage.at is not None:
            note = {"failed": "it ended here", "running": "under way"}.get(stage.state, "")
            table.add_row(stage.name, clock(stage.at), "" if stage.seconds is None else f"{stage.seconds:.2f}", note)
    return table


def _analysis(verdicts: Sequence[Verdict]) -> Table:
    table = _table("window", "metric")
    for title in ("candidate", "live", "requests", "of live", "p-value"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for one in verdicts:
        for number, metric in enumerate(one.metrics or [None]):
            window, outcome = (one.window, one.outcome) if number == 0 else ("", "")
            if metric is None:
                table.add_row(window, "", "", "", "", "", "", outcome)
                continue
            p_value = "-" if metric.p_value is None else f"{metric.p_value:.2g}"
            table.add_row(
                window,
                metric.name,
                _value(metric, metric.candidate),
                _value(metric, metric.live),
                str(metric.candidate_requests),
                str(metric.live_requests),
                p_value,
                outcome if not metric.worse else "worse",
            )
    return table


def _hooks(hooks: Sequence[HookRun]) -> Table:
    table = _table("hook")
    table.add_column("command", max_width=_COMMAND, no_wrap=True)
    table.add_column("code", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("said", max_width=_SAID, no_wrap=True)
    for one in hooks:
        said = one.output.splitlines()[0] if one.output else ""
        code = "killed" if one.code is None else str(one.code)
        table.add_row(one.when, Text(one.command), code, f"{one.seconds:.2f}", Text(said))
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in titles:
        table.add_column(title, no_wrap=True)
    return table


def _value(metric: Metric, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if metric.name in {"errors", "agreement"} else span(value)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else span(value / 1000)


def _plain(parts: Sequence[RenderableType] | Iterator[RenderableType]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, highlight=False)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
