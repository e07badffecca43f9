"""The fuzzer finds faults, and a short run of each of its targets finds nothing. `make fuzz` is the long one."""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.fuzz.target import Run, Target
from tests.fuzz.targets import TARGETS
from tests.fuzz.trial import run, run_one

SEED = 6  # of four inputs the second one meets the fault
INPUTS = {"heads": 400, "requests": 150, "schemas": 150, "images": 500, "state_files": 500}


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing(name: str) -> None:
    """A few hundred small inputs raise, crash and exhaust nothing."""
    report = run(TARGETS[name], seed=14, seconds=120, inputs=INPUTS[name], max_size=2048)
    assert [(finding.number, finding.reason) for finding in report.findings] == []
    assert report.inputs > 50


# targets with faults


def _raise() -> None:
    raise ValueError("on purpose")


def _crash() -> None:
    ctypes.string_at(0)


def _work() -> None:
    deadline = time.process_time() + 0.5
    while time.process_time() < deadline:
        pass


def _allocate() -> None:
    assert bytearray(b"x" * (100 << 20))


def _hang() -> None:
    time.sleep(60)


@contextmanager
def _start(fault: Callable[[], None], _directory: Path) -> Iterator[Run]:
    def read(data: bytes) -> None:
        if data[0] == 7:
            fault()

    yield read


def _generate(random: random.Random, _max_size: int) -> bytes:
    return b"\x07" if random.randrange(4) == 0 else b"\x01"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(_raise, "ValueError: on purpose", marks=pytest.mark.long),
        (_crash, "the process died: exit code -11"),
        pytest.param(_work, "s of CPU time; 0.3 s are allowed", marks=pytest.mark.long),
        pytest.param(_allocate, "MiB; 50 MiB are allowed", marks=pytest.mark.long),
        (_hang, "no answer within"),
    ],
)
def test_a_fault_is_found(fault: Callable[[], None], reason: str) -> None:
    """An exception, a crash, too much time or memory, and a hang are findings, which are repeated with their input."""
    target = Target("faulty", partial(_start, fault), _generate, seconds=0.3, mebibytes=50)
    report = run(target, seed=SEED, seconds=60, inputs=4, max_size=1)
    assert report.inputs == 4
    (finding,) = report.findings
    assert (finding.number, finding.data) == (1, b"\x07")
    assert reason in finding.reason
    if fault in (_raise, _work):
        assert reason in (run_one(target, finding.data) or "")
    assert run_one(target, b"\x01") is None
