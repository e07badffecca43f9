"""The goals of a GPU with the shape of the 9B model: what was seen, what is to be reached, and the table of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tests.bench.gpu.figures import STRATEGIES, Value
from tests.bench.gpu.report import Run, text

__all__ = ["GOALS", "SEEN_ON", "Goal", "judge", "table"]

SEEN_ON = "an NVIDIA H200 on 2026-11-26"

Values = Mapping[str, Value]


@dataclass(frozen=True)
class Goal:
    """A row of the table. `measured` returns None, or raises KeyError, if what it is made of was not measured."""

    what: str
    unit: str
    seen: str
    goal: str
    measured: Callable[[Values], Value]
    is_met: Callable[[Any, Values], bool]


def _number(values: Values, name: str) -> float | None:
    value = values[name]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _memory_share(values: Values) -> float | None:
    """Return the part of the memory's bandwidth that decoding one row uses for reading the weights."""
    rate, weights = _number(values, "engine.rate_1"), _number(values, "engine.step_weights")
    read = rate * weights if rate is not None and weights is not None else None
    return _ratio(read, _number(values, "bandwidth.device"))


def _beyond_reading(values: Values) -> float | None:
    ready, reading = _number(values, "http.ready"), _number(values, "http.ready_reading")
    return ready - reading if ready is not None and reading is not None else None


def _fits(values: Values) -> bool | None:
    """Whether a candidate became ready beside the live slot, both with the KV cache that the engine takes."""
    return {"refused": False, "not ready": False, "done": True, "rolled back": True, "drain cut": True}.get(
        str(values["rollouts.overlap"])
    )


def _lost(values: Values) -> str | None:
    """Return `lost of sent`, of all rollouts together."""
    measured = [name for name in STRATEGIES if values.get(f"rollouts.{name}_sent") is not None]
    if not measured:
        return None
    lost, sent = (sum(int(_number(values, f"rollouts.{name}_{kind}") or 0) for name in measured)
                  for kind in ("lost", "sent"))  # fmt: skip
    return f"{lost:,} of {sent:,}"


def _has_room(values: Values) -> bool:
    """Whether the device could hold the new weights beside the live slot, so that they can be staged on it."""
    return float(values["rollouts.free"] or 0) >= float(values["engine.weights"] or 0)


GOALS = (
    Goal("second copy beside the default cache", "", "no", "yes",
         _fits, lambda fits, _: bool(fits)),
    Goal("1 client over HTTP", "tokens/s", "94", "",
         lambda values: _number(values, "http.rate_1"), lambda *_: True),
    Goal("16 clients", "tokens/s", "912", "",
         lambda values: _number(values, "http.rate_16"), lambda *_: True),
    Goal("64 clients", "tokens/s", "648", "≥ 3,500",
         lambda values: _number(values, "http.rate_64"), lambda rate, _: rate >= 3500),
    Goal("8-token answer, mixed load, p50", "ms", "705", "≤ 150",
         lambda values: _number(values, "http.mixed_p50"), lambda ms, _: ms <= 150),
    Goal("one row, part of the memory limit", "", "0.52", "≥ 0.75",
         _memory_share, lambda share, _: share >= 0.75),
    Goal("step of 16,384 columns to one of 256", "", "2.42", "≤ 1.2",
         lambda values: _ratio(_number(values, "engine.step_16384"), _number(values, "engine.step_256")),
         lambda ratio, _: ratio <= 1.2),
    Goal("prompt of 512 tokens", "ms", "50", "≤ 20",
         lambda values: _number(values, "engine.prompt_512"), lambda ms, _: ms <= 20),
    Goal("load of the weights, part of the link", "", "0.12", "≥ 0.5",
         lambda values: _ratio(_number(values, "engine.load_rate"), _number(values, "bandwidth.pinned")),
         lambda ratio, _: ratio >= 0.5),
    Goal("start to READY without reading", "s", "17 to 23", "≤ 8",
         _beyond_reading, lambda seconds, _: seconds <= 8),
    Goal("release add", "s", "36", "",
         lambda values: _number(values, "digests.add"), lambda *_: True),
    Goal("preflight, with its digests", "s", "18 to 19", "≤ 1",
         lambda values: _number(values, "rollouts.overlap_preflight"), lambda seconds, _: seconds <= 1),
    Goal("weights: requests are held", "s", "2.9", "≤ 0.1/0.6",
         lambda values: _number(values, "rollouts.weights_held"),
         lambda seconds, values: seconds <= (0.1 if _has_room(values) else 0.6)),
    Goal("deploy without systemd-run, exit code", "", "1", "3",
         lambda values: values["rollouts.missing_program"], lambda code, _: code == 3),
    Goal("requests lost, all rollouts", "", "0 of 2,470", "0",
         _lost, lambda lost, _: lost.startswith("0 ")),
)  # fmt: skip


def judge(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the rows: `what`, `unit`, `seen`, `measured`, `goal`, and `met`.

    `met` is None for a row without a goal, one that was not measured, and all rows of a run on another shape or without
    a GPU, whose times say nothing about a goal.
    """
    counts = run.header.get("shape") == "9b" and run.header.get("device") == "cuda"
    for goal in GOALS:
        try:
            measured = goal.measured(run.values)
            met = goal.is_met(measured, run.values) if counts and goal.goal and measured is not None else None
        except KeyError:
            measured = met = None
        yield {"what": goal.what, "unit": goal.unit, "seen": goal.seen, "measured": measured,
               "goal": goal.goal, "met": met}  # fmt: skip


def table(run: Run) -> Table:
    """Return the rows as a table of 80 columns."""
    header = run.header
    where = header.get("card") if header.get("device") == "cuda" else "CPU"
    title = f"shape {header.get('shape')}, {where}, commit {header.get('commit') or 'unknown'}"
    found = Table(
        title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, width=80, padding=0, show_edge=False
    )
    found.add_column("", ratio=1)
    for name, style, width in (("seen", "dim", 10), ("here", "bold", 11), ("goal", "", 9)):
        found.add_column(name, justify="right", style=style, width=width)
    found.add_column("met", width=3)
    for row in judge(run):
        unit = f", {row['unit']}" if row["unit"] else ""
        verdict = {None: "", True: "[green]yes", False: "[red]NO"}[row["met"]]
        found.add_row(f"{row['what']}{unit}", row["seen"], text(row["measured"]), row["goal"], verdict)
    found.caption = f"seen: {SEEN_ON}; -: not measured; 0.1/0.6: with room for the new weights, without."
    if header.get("shape") != "9b" or header.get("device") != "cuda":
        found.caption += " This run checked the tool: its times say nothing about a GPU, and no goal is judged."
    return found
