"""Trials: many inputs for one target, in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.target import Run, Target

__all__ = ["Finding", "Report", "run", "run_one"]

START_TIMEOUT = 300.0  # seconds to prepare a target
FINDINGS = 20  # after which a target is given up


@dataclass(frozen=True)
class Finding:
    """An input that a target cannot stand, and why."""

    target: str
    seed: int
    number: int
    reason: str
    data: bytes


@dataclass
class Report:
    """The inputs that a target has read."""

    target: str
    inputs: int
    findings: list[Finding]
    slowest: float = 0.0
    """Seconds of CPU time."""
    largest: float = 0.0
    """Mebibytes by which an input raised the resident memory."""


def run(target: Target, *, seed: int, seconds: float, inputs: int | None = None, max_size: int) -> Report:
    """Run a target for so long, or for so many inputs; its process is started again after a finding."""
    deadline = time.monotonic() + seconds
    report, number = Report(target.name, 0, []), 0
    while time.monotonic() < deadline and len(report.findings) < FINDINGS and (inputs is None or number < inputs):
        reached, reason = _run_process(target, seed, number, inputs, deadline, max_size, report)
        if reason is not None:
            data = target.generate(_random(seed, reached), max_size)
            report.findings.append(Finding(target.name, seed, reached, reason, data))
        number = reached + 1
    report.inputs = number
    return report


def run_one(target: Target, data: bytes) -> str | None:
    """Run a target on one input, in this process; return the reason if it is a finding."""
    with tempfile.TemporaryDirectory() as directory, target.start(Path(directory)) as read:
        return _judge(target, read, data)[0]


def _run_process(
    target: Target, seed: int, number: int, inputs: int | None, deadline: float, max_size: int, report: Report
) -> tuple[int, str | None]:
    """Run inputs from `number` on in a new process; return the last one, and the reason if it is a finding."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(target, seed, number, inputs, deadline, max_size, sender))
    process.start()
    sender.close()
    reached, patience = number, START_TIMEOUT
    try:
        while True:
            if not receiver.poll(patience):
                return reached, f"no answer within {patience:g} s"
            kind, value = receiver.recv()
            if kind == "begin":
                reached, patience = value, 10 * target.seconds + 5
            elif kind == "end":
                report.slowest, report.largest = max(report.slowest, value[0]), max(report.largest, value[1])
            else:
                return (reached, value) if kind == "finding" else (value, None)
    except EOFError:
        process.join()
        return reached, f"the process died: exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()


def _child(
    target: Target, seed: int, number: int, inputs: int | None, deadline: float, max_size: int, pipe: Connection
) -> None:
    logging.lastResort = None  # what the targets log is not of interest, and much
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as directory, target.start(Path(directory)) as read:
        _judge(target, read, target.generate(_random(seed, -1), 256))  # imports and caches are not the input's
        while time.monotonic() < deadline and (inputs is None or number < inputs):
            pipe.send(("begin", number))
            reason, used = _judge(target, read, target.generate(_random(seed, number), max_size))
            pipe.send(("end", used))
            if reason is not None:
                pipe.send(("finding", reason))
                return
            number += 1
    pipe.send(("done", number - 1))


def _judge(target: Target, read: Run, data: bytes) -> tuple[str | None, tuple[float, float]]:
    """Return why an input is a finding, or None; and the CPU time and the memory that it used."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, began = _status("VmRSS"), time.process_time()
    error = None
    try:
        read(data)
    except Exception:
        error = traceback.format_exc()
    seconds, mebibytes = time.process_time() - began, (_status("VmHWM") - before) / 1024
    if error is None and seconds > target.seconds:
        error = f"{seconds:.2f} s of CPU time; {target.seconds:g} s are allowed"
    if error is None and mebibytes > target.mebibytes:
        error = f"{mebibytes:.0f} MiB; {target.mebibytes} MiB are allowed"
    return error, (seconds, mebibytes)


def _status(field: str) -> int:
    """Return a field of /proc/self/status, in KiB."""
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise AssertionError(field)


def _random(seed: int, number: int) -> random.Random:
    return random.Random(f"{seed}/{number}")
