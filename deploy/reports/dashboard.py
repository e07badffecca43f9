"""The screen of `status`: both slots, and the timeline of the current or last rollout."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.console import ConsoleDimensions, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.analysis.verdict import Metric, Verdict
from deploy.display import duration, size
from deploy.journal.record import Record
from deploy.reports import devices, report
from deploy.reports.overview import View
from deploy.reports.report import clock_time
from deploy.reports.timeline import Stage, stages

__all__ = ["Dashboard"]

_SIDE_BY_SIDE = 72  # columns from which the slots stand side by side
_WIDE = 110  # columns from which all metrics of a verdict are shown
_SLOT_LINES, _OTHER_LINES = 9, 5
_LINES_A_DEVICE = 12  # of the terminal, for each device that is shown
_MIN_SCALE = 8  # requests in flight that fill a bar, or the most seen so far
_BARS = " ▁▂▃▄▅▆▇█"
_STATES = {"ready": "green", "starting": "yellow", "stopping": "yellow", "vacant": "magenta", "failed": "bold red"}
_NARROW: dict[str, str] = {"errors": "", "p95": "p95"}
_MARKS = {"done": ("✓", "green"), "running": ("●", "cyan"), "failed": ("✗", "red"), "to come": ("·", "dim")}


class Dashboard:
    """Draws views. The scale of its bars only grows, so that they stay comparable."""

    def __init__(self) -> None:
        self._scale = _MIN_SCALE

    def draw(self, view: View, terminal: ConsoleDimensions) -> RenderableType:
        """Return the screen for a terminal of that size; phases that do not fit are left out."""
        slots = view.document["slots"]
        self._scale = max(self._scale, *(slot["in_flight"] for slot in slots.values()))
        panels = [self._slot(view, name) for name in slots]
        side_by_side = terminal.width >= _SIDE_BY_SIDE
        memory = _devices(view, terminal.height // _LINES_A_DEVICE)
        lines = terminal.height - _OTHER_LINES - len(memory) - _SLOT_LINES * (1 if side_by_side else len(panels))
        slots_row = _row(panels) if side_by_side else Group(*panels)
        return Group(_head(view), slots_row, *memory, _rollout(view, terminal.width, lines))

    def _slot(self, view: View, name: str) -> RenderableType:
        slot = view.document["slots"][name]
        is_live = name == view.document["live"]
        color = "green" if is_live else "cyan" if slot["share"] else "bright_black"
        rows = Table.grid(padding=(0, 1, 0, 0), expand=True)
        rows.add_column(style="dim", no_wrap=True, min_width=9)
        rows.add_column(justify="right", no_wrap=True, min_width=9)
        rows.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        mirrored = Text(f"and {slot['mirror']:g} % mirrored", "dim")
        rows.add_row("share", f"{slot['share']:g} %", mirrored if slot["mirror"] else _bar(slot["share"], 100, color))
        rows.add_row("in flight", str(slot["in_flight"]), _bar(slot["in_flight"], self._scale, color))
        rows.add_row("requests", _rate(slot["requests_per_s"]), _Sparkline(view.recent.get(name, []), color))
        rows.add_row("p95", duration(slot["p95"]), Text(f"ttft {duration(slot['ttft_p95'])}", "dim"))
        rows.add_row("clients", str(slot["connections"]))
        rows.add_row("memory", size(slot["memory"]), Text(report.workers(slot), "dim"))
        number = f" #{slot['generation']}" if slot["generation"] else ""
        title = Text.assemble((name, f"bold {color}"), (number + (" live" if is_live else ""), color))
        return Panel(Group(_state(slot), rows), title=title, title_align="left", border_style=color)


class _Sparkline:
    """A bar for each of the last seconds, as many as fit into the column."""

    def __init__(self, counts: list[int], color: str) -> None:
        self._counts, self._color = counts, color

    def __rich_console__(self, console: Any, options: Any) -> Any:
        counts = self._counts[-options.max_width :]
        largest = max([*counts, 1])
        yield Text("".join(_BARS[-(-number * (len(_BARS) - 1) // largest)] for number in counts), self._color)


def _head(view: View) -> RenderableType:
    listen = view.document["listen"] or "nothing (run `glmctl install`)"
    row = Table.grid(expand=True)
    row.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    row.add_column(justify="right", no_wrap=True)
    row.add_row(Text.assemble(" ", ("glm", "bold"), f"  listening on {listen}"), Text(f"{datetime.now():%H:%M:%S} "))
    return row


def _devices(view: View, most: int) -> list[Text]:
    """Return a line for each device, at most that many, but one."""
    shown = view.document["devices"][: max(1, most)]
    return [Text(f" {devices.text(one)}", "dim", no_wrap=True, overflow="ellipsis") for one in shown]


def _row(panels: list[RenderableType]) -> RenderableType:
    row = Table.grid(expand=True)
    for _ in panels:
        row.add_column(ratio=1)
    row.add_row(*panels)
    return row


def _state(slot: dict[str, Any]) -> Text:
    state = slot["state"]
    detail = (slot["status_text"] or "").partition(": ")[2] if state in {"starting", "stopping", "failed"} else ""
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(slot["version"] or "no release", "bold" if slot["version"] else "dim")
    line.append("  ")
    line.append(state, _STATES.get(state, "dim"))
    line.append(f"  {detail}" if detail else f", gate {slot['gate']}" if slot["workers"] else "", "dim")
    return line


def _rollout(view: View, width: int, lines: int) -> RenderableType:
    record = view.record
    if record is None:
        return Panel(Text("no rollout yet (run `glmctl deploy VERSION`)", "dim"), border_style="bright_black")
    rows = Table.grid(padding=(0, 1, 0, 0), expand=True)
    rows.add_column(no_wrap=True)
    for justify in ("left", "left", "right"):
        rows.add_column(no_wrap=True, justify=justify)
    rows.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for stage in _fitting(stages(record), lines):
        verdict = view.so_far if stage.state == "running" else stage.verdict
        mark, color = _MARKS[stage.state]
        dim = "dim" if stage.state == "to come" else ""
        rows.add_row(
            Text(mark, color),
            Text(stage.name, "bold" if stage.state == "running" else dim),
            Text(clock_time(stage.at), "dim"),
            Text(_seconds(stage), dim),
            _result(stage, verdict, width),
        )
    under_way = record.outcome is None
    before = f" (before: {record.previous})" if record.previous else ""
    name = f" {record.id}" if width >= _SIDE_BY_SIDE else ""
    title = Text.assemble((record.kind, "bold"), f" {record.version}{before}", (name, "dim"))
    is_running = under_way and not view.document["rollout"]["interrupted"]
    outcome = Text("" if is_running else str(view.document["summary"]), _color(record))
    return Panel(
        rows if is_running else Group(rows, outcome),
        title=title,
        title_align="left",
        border_style="cyan" if is_running else "bright_black",
    )


def _fitting(shown: list[Stage], lines: int) -> list[Stage]:
    """Return the stages that fit: the first that are done are left out, then the last that are to come."""
    while len(shown) > max(1, lines) and shown[0].state == "done":
        shown = shown[1:]
    while len(shown) > max(1, lines) and shown[-1].state == "to come":
        shown = shown[:-1]
    return shown


def _result(stage: Stage, verdict: Verdict | None, width: int) -> RenderableType:
    """Return the metrics of a canary step or bake; a progress bar while it has none."""
    if verdict is None or not (verdict.metrics or verdict.reason):
        if stage.state == "running" and stage.planned:
            return _bar(stage.seconds or 0.0, stage.planned, "cyan")
        return Text("")
    if verdict.outcome == "worse":
        return Text(f"worse: {verdict.reason}", "red")
    wide = width >= _WIDE
    names = {"errors": "", "p95": "p95", "ttft p95": "first token p95", "agreement": ""} if wide else _NARROW
    shown = [metric for metric in verdict.metrics if metric.name in names and metric.candidate is not None]
    parts = [_metric(metric, names[metric.name]) for metric in shown]
    if stage.state != "running" and (wide or verdict.outcome != "not worse"):
        parts.insert(0, verdict.outcome)
    return Text(", ".join(parts))


def _metric(metric: Metric, name: str) -> str:
    if metric.name in {"errors", "agreement"}:
        number = round((metric.candidate or 0.0) * metric.candidate_requests)
        return f"{number} of {metric.candidate_requests} {'failed' if metric.name == 'errors' else 'agree'}"
    live = "" if metric.live is None else f", live {duration(metric.live)}"
    return f"{name} {duration(metric.candidate)}{live}"


def _seconds(stage: Stage) -> str:
    if stage.state == "running" and stage.planned is not None:
        return f"{stage.seconds or 0:.0f} of {stage.planned:g} s"
    if stage.state == "to come":
        return f"{stage.planned:g} s" if stage.planned is not None else ""
    return "" if stage.seconds is None else f"{stage.seconds:.1f} s"


def _color(record: Record) -> str:
    return {"done": "green", "rolled back": "yellow"}.get(record.outcome or "", "red")


def _bar(value: float, full: float, color: str) -> ProgressBar:
    return ProgressBar(total=full, completed=min(value, full), complete_style=color, finished_style=color)


def _rate(per_second: float | None) -> str:
    return "-" if per_second is None else f"{per_second:.1f} /s"
