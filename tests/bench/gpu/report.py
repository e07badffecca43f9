"""The report of a run: printed, and appended to a file of JSON lines, as soon as each figure is known.

The file is the only record: the table and the JSON document at the end are made of its lines, also of those of a run
that was interrupted. The parts of a run may be measured in other processes, which append to the same file.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from deploy.errors import GlmError
from tests.bench.gpu.figures import FIGURES, Value

__all__ = ["Report", "Run", "Step", "text"]

_INTERVAL = 10.0  # seconds between two lines of progress where stdout is not a terminal


class Report:
    """Prints and records figures."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.console = Console(highlight=False)

    def begin(self, header: dict[str, Any]) -> None:
        """Begin the file with the description of the run."""
        self.path.write_text("")
        self._append({"run": header})

    def say(self, line: str) -> None:
        """Print a line that is not recorded."""
        self.console.print(line, soft_wrap=True, markup=False)

    def figure(self, name: str, value: Value, note: str = "") -> None:
        """Record a figure of FIGURES; `note` says why there is no value."""
        figure = FIGURES[name]
        self._append({"figure": name, "value": value, "unit": figure.unit} | ({"note": note} if note else {}))
        line = f"  {figure.what:<60} {text(value):>7} {figure.unit}".rstrip()
        self.console.print(line, markup=False, soft_wrap=True)
        if note:
            self.console.print(f"    {note}", style="yellow", markup=False, soft_wrap=True)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Record how a part ends. An error ends the part and not the run; without systemd the part is skipped."""
        self.console.print(f"\n{name}", style="bold")
        try:
            yield
        except KeyboardInterrupt:
            self.end_part(name, "interrupted")
            raise
        except GlmError as error:
            self.end_part(name, "skipped", f"{error}; {error.hint}" if error.hint else str(error))
        except Exception as error:
            self.console.print(traceback.format_exc().rstrip(), style="dim", markup=False, soft_wrap=True)
            self.end_part(name, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
        else:
            self.end_part(name, "done")

    def end_part(self, name: str, outcome: str, why: str = "") -> None:
        """Record that a part has ended."""
        self._append({"part": name, "outcome": outcome} | ({"why": why} if why else {}))
        if why:
            self.console.print(f"  {outcome}: {why}", style="yellow", markup=False, soft_wrap=True)

    @contextmanager
    def step(self, title: str, total: float | None = None) -> Iterator[Step]:
        """Show what is being done for as long as it takes: a moving line on a terminal, some lines elsewhere."""
        if self.console.is_terminal:
            bar = (BarColumn(bar_width=20),) if total else ()
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), *bar, TimeElapsedColumn())
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(title, total=total)
                yield Step(
                    lambda done: progress.update(task, completed=done),
                    lambda text: progress.update(task, description=f"{title}: {text}"[: self.console.width - 12]),
                )
            return
        self.console.print(f"  … {title}", markup=False, soft_wrap=True)
        last = time.monotonic()

        def tell(text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= _INTERVAL:
                last = time.monotonic()
                self.console.print(f"  … {title}: {text}", markup=False, soft_wrap=True)

        yield Step(lambda done: tell(f"{done / total:.0%}") if total else None, tell)

    def _append(self, line: dict[str, Any]) -> None:
        stamped = line | {"at": datetime.now(UTC).isoformat(timespec="seconds")}
        with self.path.open("a") as file:
            file.write(json.dumps(stamped, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Step:
    """What is being done now."""

    update: Callable[[float], None]
    """Takes the part that is done, of the step's total."""
    tell: Callable[[str], None]
    """Takes what is being done."""


@dataclass
class Run:
    """The lines of a run."""

    header: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    parts: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read a file of JSON lines, but a last one cut short; raises OSError, and ValueError if it is another file."""
        run = cls()
        lines = path.read_text().split("\n")
        for line in lines[:-1]:  # what follows the last newline was cut short
            document = json.loads(line)
            if "run" in document:
                run.header = document["run"] | {"started": document["at"]}
            elif "figure" in document:
                run.values[document["figure"]] = document["value"]
                if "note" in document:
                    run.notes[document["figure"]] = document["note"]
            else:
                run.parts[document["part"]] = {name: document[name] for name in ("outcome", "why") if name in document}
            run.header["ended"] = document["at"]
        return run

    def document(self, goals: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the JSON document of the run."""
        figures = {
            name: {"value": value, "unit": FIGURES[name].unit, "what": FIGURES[name].what}
            | ({"note": self.notes[name]} if name in self.notes else {})
            for name, value in self.values.items()
            if name in FIGURES
        }
        return self.header | {"parts": self.parts, "figures": figures, "goals": list(goals)}


def text(value: Value) -> str:
    """Return a value for the table: three significant digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
