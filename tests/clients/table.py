"""The table of what each package was seen to do, from the reports of a test run, and its place in README.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.packages import CELLS, HERE, PACKAGES

README = HERE / "README.md"
BEGIN, END = "<!-- written by `make clients-table` -->\n", "<!-- end -->\n"

Results = dict[tuple[str, str], dict[str, str]]
"""By package and version: the outcome of each cell that was run, "passed" or "failed"."""


def results(reports: Iterable[object]) -> Results:
    """Collect the outcomes of the tests of packages."""
    found: Results = {}
    for report in reports:
        if isinstance(report, pytest.TestReport) and report.when == "call":
            properties: list[tuple[str, Any]] = report.user_properties
            for _, (key, cell) in (one for one in properties if one[0] == "client"):
                found.setdefault(tuple(key), {})[cell] = report.outcome
    order = [str(package) for package in PACKAGES]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0][0])))


def lines(found: Results) -> list[str]:
    """Return the lines of the table, in Markdown."""
    words = {"passed": "yes", "failed": "no", "": "-"}
    rows = [["package", "version", *CELLS.values()], ["---"] * (2 + len(CELLS))]
    rows += [[*key, *(words[cells.get(cell, "")] for cell in CELLS)] for key, cells in found.items()]
    return [f"| {' | '.join(row)} |" for row in rows]


def write(found: Results, path: Path = README) -> None:
    """Replace the table of the document."""
    head, _, rest = path.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    path.write_text(head + BEGIN + "\n" + "\n".join(lines(found)) + "\n\n" + END + tail)
