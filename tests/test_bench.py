"""The benchmarks can be started: each imports, and its --help states the question that it answers."""

from __future__ import annotations

import importlib
import re

import pytest

import tests.bench

BENCHMARKS = re.findall(r"^- `(\w+)`: (.+)$", tests.bench.__doc__ or "", re.MULTILINE)


def test_benchmarks_are_listed() -> None:
    """The package lists the benchmarks that `make bench` and `make soak` run, among others."""
    assert {"engine", "handover", "canary", "swap", "soak"} <= {name for name, _ in BENCHMARKS}


@pytest.mark.parametrize("name", [name for name, _ in BENCHMARKS])
def test_help_states_the_question(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m tests.bench.NAME --help` exits with 0, and begins with a question."""
    module = importlib.import_module(f"tests.bench.{name}")
    with pytest.raises(SystemExit) as exit_:
        module.main(["--help"])
    assert exit_.value.code == 0
    output = " ".join(capsys.readouterr().out.split())
    question, mark, _ = (module.__doc__ or "").partition("?")
    assert mark
    assert f"python -m tests.bench.{name}" in output
    assert " ".join(question.split()) in output
