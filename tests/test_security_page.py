"""SECURITY.md has the bounds as they are."""

from __future__ import annotations

import re
from pathlib import Path

from service import refusals
from service.settings import Settings

PAGE = (Path(__file__).resolve().parent.parent / "SECURITY.md").read_text()
UNITS = {"": 1, " s": 1, " B": 1, " KiB": 1 << 10, " MiB": 1 << 20, " GiB": 1 << 30}
ROW = re.compile(r"^\| `GLM_([A-Z_]+)` \| ([\d.,]+)( s| B| [KMG]iB)? \| ", re.MULTILINE)
NO_BOUNDS = {"workers", "threads"}


def test_the_table_has_every_bound_with_its_default() -> None:
    """Each setting that is a number is in the table, with its default."""
    found = {name.lower(): float(number.replace(",", "")) * UNITS[unit] for name, number, unit in ROW.findall(PAGE)}
    defaults = {
        name: field.default
        for name, field in Settings.model_fields.items()
        if field.annotation in (int, float) and name not in NO_BOUNDS
    }
    assert found == defaults


def test_the_rate_of_the_log() -> None:
    """The page has the constants of the log of refusals."""
    text = " ".join(PAGE.split())
    assert f"at most {refusals.MAX_LINES} lines a second, {refusals.MAX_LINES_OF_ADDRESS} of one address" in text


def test_every_setting_of_the_sum_exists() -> None:
    """The sum of a worker's memory is made of settings."""
    table = PAGE[PAGE.index("## The memory of a worker") :]
    assert {name.lower() for name in re.findall(r"`([A-Z_]+)`", table)} <= set(Settings.model_fields)
