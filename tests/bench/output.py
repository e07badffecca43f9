"""The output of a benchmark: one JSON document a line in a file, and tables of at most 80 columns."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

__all__ = ["WIDTH", "Output", "parser", "read"]

WIDTH = 80


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m tests.bench.NAME`, with the options that `Output.of` reads."""
    found = argparse.ArgumentParser(
        prog=f"python -m tests.bench.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--quick", action="store_true", help="fewer repetitions: a check of the benchmark, no figures")
    found.add_argument("--json", type=Path, metavar="FILE", help="append the measurements to FILE, a document a line")
    return found


class Output:
    """The rows and the tables of one benchmark."""

    def __init__(self, benchmark: str, path: Path | None = None, *, quick: bool = False) -> None:
        self.benchmark = benchmark
        self.quick = quick
        self._path = path
        self._console = Console(width=WIDTH, highlight=False)
        self._progress = Console(stderr=True, highlight=False)

    @classmethod
    def of(cls, benchmark: str, options: argparse.Namespace) -> Output:
        """Return the output that the options ask for, and begin it with what the figures depend on.

        From here on SIGTERM ends the benchmark by an exception, so that it ends what it has started.
        """
        signal.signal(signal.SIGTERM, _terminate)
        output = cls(benchmark, options.json, quick=options.quick)
        output.row(
            "run",
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            processors=os.cpu_count(),
            load=round(os.getloadavg()[0], 1),
            machine=platform.machine(),
            python=platform.python_version(),
            arguments=sys.argv[1:],
        )
        return output

    def row(self, kind: str, **values: Any) -> dict[str, Any]:
        """Append a measurement to the file at once, so that an interrupted run keeps it; returns the document."""
        document = {"benchmark": self.benchmark, "kind": kind, "quick": self.quick, **values}
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(document) + "\n")
        return document

    def progress(self, text: str) -> None:
        """Print to stderr what is measured now."""
        self._progress.print(f"{time.strftime('%H:%M:%S')} {self.benchmark}: {text}", soft_wrap=True, markup=False)

    def note(self, text: str) -> None:
        """Print a line, wrapped at 80 columns."""
        self._console.print(text, markup=False)

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str | None = None
    ) -> None:
        """Print a table whose first column is text and whose others are figures."""
        table = Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.title_justify = "left"
        table.caption_justify = "left"
        table.add_column(columns[0], no_wrap=True)
        for column in columns[1:]:
            table.add_column(column, justify="right", overflow="fold")
        for row in rows:
            table.add_row(*(cell(value) for value in row))
        self._console.print(table)


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def cell(value: object) -> str:
    """Return a figure with about three digits; an empty cell for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the documents of a file; a line that an interrupted run has cut short is left out."""
    for line in path.read_text().splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict) and "benchmark" in document:
            yield document
