"""Past rollouts as text: a list of all, or the details of one."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.analysis.verdict import Metric, Verdict
from deploy.display import count, duration
from deploy.journal.receipt import Line, Receipt
from deploy.journal.record import HookRun, Phase, Record, seconds_between
from deploy.reports.report import clock_time, load_parts, receipt_sentence, stdout, summary
from deploy.reports.tables import fitting, receipt_table
from deploy.reports.timeline import stages

__all__ = ["details", "listing"]

_COMMAND_WIDTH, _OUTPUT_WIDTH = 42, 36  # columns of a hook's command and of the first line of its output
_HOOK_WIDTH = 35  # columns of the rest of its row


def listing(records: Sequence[Record], width: int | None = None) -> str:
    """Return a table of rollouts, one row each, in the given order; `width`: as in `details`.

    A narrow terminal shows fewer columns.
    """
    width = width or stdout().width
    rows = [
        {
            "rollout": record.id,
            "kind": record.kind,
            "version": record.version,
            "before": record.previous or "-",
            "outcome": record.outcome or f"in {record.phase}",
            "duration": duration(record.seconds),
            "longest wait": "-" if record.pause_ms is None else duration(record.pause_ms / 1000),
            "lost": "-" if record.receipt is None else str(record.receipt.lost),
        }
        for record in records
    ]
    right = ("duration", "longest wait", "lost")
    return _plain([fitting(rows, width, right=right, optional=("longest wait", "duration", "before"))], width)


def details(record: Record, width: int | None = None) -> str:
    """Return one rollout: summary, phases, analysis, hooks, receipt, and its effect on clients.

    Lines have at most `width` columns; None: those of the terminal, or `WIDTH` without one.
    """
    width = width or stdout().width
    return _plain(_sections(record, width), width)


def _sections(record: Record, width: int) -> Iterator[RenderableType]:
    yield Text(f"{record.id}  {summary(record)}")
    if record.operator:
        yield Text(f"begun by {record.operator}")
    if record.steps:
        yield ""
        yield _phases(record)
    if record.analysis:
        yield ""
        yield _analysis(record.analysis, width)
        for verdict in record.analysis:
            if verdict.reason:
                yield Text(f"{verdict.window}: {verdict.outcome}, {verdict.reason}")
    if record.hooks:
        yield ""
        yield _hooks(record.hooks, width)
    if record.receipt is not None:
        yield ""
        yield receipt_table(record.receipt, width)
        yield receipt_sentence(record.receipt)
        if record.outcome is not None:
            yield Text(_effect(record, record.receipt))


def _phases(record: Record) -> Table:
    zone = datetime.now().astimezone().tzname()
    table = _table("phase", f"began ({zone})")
    table.add_column("seconds", justify="right")
    table.add_column("")
    for stage in stages(record):
        if stage.at is not None:
            note = {"failed": "ended here", "running": "under way"}.get(stage.state, "")
            note = note or _facts(record, stage.phase)
            seconds = "" if stage.seconds is None else f"{stage.seconds:.2f}"
            table.add_row(stage.name, clock_time(stage.at), seconds, note)
    return table


def _facts(record: Record, phase: Phase) -> str:
    """Return what else is known of a phase."""
    if phase in {"start", "reload"}:
        return load_parts(record.load)
    if phase == "preflight" and record.digests is not None:
        beside = "" if record.strategy == "swap" else ", beside the load"
        return f"digests compared in {duration(record.digests)}{beside}"
    if phase == "prepare" and record.staged:
        return f"the new weights were staged in {record.staged}"
    return ""


def _analysis(verdicts: Sequence[Verdict], width: int) -> Table:
    right = ("candidate", "live", "requests", "of live", "p-value")
    return fitting(_compared(verdicts), width, right=right, optional=("of live", "p-value", "requests"))


def _compared(verdicts: Sequence[Verdict]) -> Iterator[dict[str, RenderableType]]:
    """Yield a row for each metric."""
    for verdict in verdicts:
        window, outcome = verdict.window, str(verdict.outcome)
        if not verdict.metrics:
            empty = dict.fromkeys(("metric", "candidate", "live", "requests", "of live", "p-value"), "")
            yield {"window": window, **empty, "outcome": outcome}
        for metric in verdict.metrics:
            yield {
                "window": window,
                "metric": metric.name,
                "candidate": _value(metric, metric.candidate),
                "live": _value(metric, metric.live),
                "requests": str(metric.candidate_requests),
                "of live": str(metric.live_requests),
                "p-value": "-" if metric.p_value is None else f"{metric.p_value:.2g}",
                "outcome": "worse" if metric.worse else outcome,
            }
            window = outcome = ""  # only in the first row of a window


def _hooks(hooks: Sequence[HookRun], width: int) -> Table:
    """Return a row for each hook; what is too long of a command and of its output is cut off."""
    left = width - _HOOK_WIDTH
    command_width, output_width = min(_COMMAND_WIDTH, left // 2), min(_OUTPUT_WIDTH, left // 2)
    table = _table("hook")
    table.add_column("command", max_width=command_width, no_wrap=True)
    table.add_column("code", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("output", max_width=output_width, no_wrap=True)
    for hook in hooks:
        first_line = hook.output.splitlines()[0] if hook.output else ""
        code = "killed" if hook.code is None else str(hook.code)
        table.add_row(hook.when, Text(hook.command), code, f"{hook.seconds:.2f}", Text(first_line))
    return table


def _effect(record: Record, receipt: Receipt) -> str:
    """Return the effect of an ended rollout on clients, in one or two sentences."""
    if record.outcome == "done" and _entered(record, "cutover", "rollback", "reload"):
        return _effect_of_success(record, receipt)
    live = f"{record.previous} serves as before" if record.previous else "nothing is live"
    if record.kind == "reload":
        return f"The new generation of {record.version} did not take over; {live}."
    answered = count(sum(line.completed for line in receipt.lines if _is_new(record, line, receipt)), "request")
    if not _entered(record, "cutover", "rollback"):
        return f"{record.version} never went live and completed {answered}; {live}."
    seconds = _seconds_live(record)
    facts = [
        f"{record.version} was live{f' for {duration(seconds)}' if seconds else ''} and completed {answered}",
        live,
        _longest_wait(record),
    ]
    return f"{'; '.join(filter(None, facts))}."


def _effect_of_success(record: Record, receipt: Receipt) -> str:
    match record.kind:
        case "reload":
            change = f"A new generation of {record.version} took over in {record.slot}"
        case _ if record.previous is None:
            wait = _longest_wait(record)
            return f"{record.version} went live in {record.slot}; nothing was live before{f'; {wait}' if wait else ''}."
        case "rollback":
            change = f"{record.version} took over again from {record.previous} in {record.slot}"
        case _:
            change = f"{record.version} took over from {record.previous} in {record.slot}"
    old = "generation" if record.kind == "reload" else "version"
    drained = sum(line.drained for line in receipt.lines if not _is_new(record, line, receipt))
    facts = [
        count(receipt.handed_out, "client connection handoff") if receipt.handed_out else "",
        f"the drain deadline cut {count(receipt.cut, 'request')}" if receipt.cut else "no request was cut",
        f"the old {old} completed {count(drained, 'request')} while draining" if drained else "",
        _longest_wait(record),
    ]
    return f"{change}: {', '.join(filter(None, facts))}."


def _entered(record: Record, *phases: str) -> bool:
    return any(step.phase in phases for step in record.steps)


def _is_new(record: Record, line: Line, receipt: Receipt) -> bool:
    """Return whether the rollout started that generation; after a reload it is the newest of its slot."""
    if line.slot != record.slot:
        return False
    newest = max(one.generation for one in receipt.lines if one.slot == record.slot)
    return record.kind != "reload" or line.generation == newest


def _seconds_live(record: Record) -> float | None:
    began = next((step.at for step in record.steps if step.phase == "cutover"), None)
    ended = next((step.at for step in record.steps if step.phase == "rollback"), record.ended_at)
    return seconds_between(began, ended) if began and ended else None


def _longest_wait(record: Record) -> str:
    return f"the longest wait of a client was {duration(record.pause_ms / 1000)}" if record.pause_ms else ""


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in titles:
        table.add_column(title, no_wrap=True)
    return table


def _value(metric: Metric, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if metric.name in {"errors", "answer errors", "agreement"} else duration(value)


def _plain(parts: Iterable[RenderableType], width: int) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
