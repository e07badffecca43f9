"""The documented table of packages is that of a run with the versions that are pinned now."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.clients import table
from tests.clients.packages import CELLS, PACKAGES


def test_the_table_is_that_of_the_pinned_versions() -> None:
    """Every package has a row with its pinned version, and an outcome for each cell that it offers."""
    written = table.README.read_text().partition(table.BEGIN)[2].partition(table.END)[0].split("\n")
    rows = [[word.strip() for word in line.strip("|").split("|")] for line in written if line.startswith("| ")][2:]
    assert [(row[0], row[1]) for row in rows] == [(str(package), package.pinned) for package in PACKAGES]
    for row, package in zip(rows, PACKAGES, strict=True):
        assert [cell for cell, word in zip(CELLS, row[2:], strict=True) if word != "-"] == list(package.cells)


def report(name: str, outcome: Literal["passed", "failed"], found: tuple[str, object]) -> pytest.TestReport:
    return pytest.TestReport(name, (name, 0, name), {}, outcome, None, "call", user_properties=[found])


def test_only_tests_of_packages_are_in_the_table() -> None:
    """A cell is yes, no, or empty if it was not run; what has no such property is ignored."""
    reports = [
        report("text", "passed", ("client", (("litellm", "1.0"), "text"))),
        report("stream", "failed", ("client", [["litellm", "1.0"], "stream"])),  # as another process sends it
        report("text", "passed", ("crash", (("worker", "start"), "1.0.0"))),
    ]
    _, _, row = table.lines(table.results(reports))
    assert row.split("|")[1:5] == [" litellm ", " 1.0 ", " yes ", " no "]
    assert set(row.split("|")[5:-1]) == {" - "}
