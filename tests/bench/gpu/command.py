"""The command: which parts are measured, in which order, and what becomes of the figures."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from deploy.errors import GlmError
from service.contract import atomic
from tests.bench.gpu import bandwidth, digests, engine, machine, releases, rollouts, server
from tests.bench.gpu.figures import PARTS
from tests.bench.gpu.goals import judge, table
from tests.bench.gpu.releases import Plan
from tests.bench.gpu.report import Report, Run

__all__ = ["main", "measure_in_child"]

Measure = Callable[[Plan, Report], None]

_MEASURES: dict[str, Measure] = {
    "bandwidth": bandwidth.measure,
    "engine": engine.measure,
    "digests": digests.measure,
    "http": server.measure,
    "rollouts": rollouts.measure,
}
_ON_DEVICE = {"bandwidth", "engine"}
"""Parts that use the device themselves. Each is a process, whose end frees the device for the servers of the others."""
_ROOM = 24 << 30
"""Bytes of a card on which the 9B shape is measured by default: 20.6 GB of weights, a cache and the workspace."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 0, or 1 if a part failed or was skipped."""
    import tests.bench.gpu

    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gpu",
        description=tests.bench.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=("9b", "small"), help="of the model (default: 9b if the card has room)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="(default: cuda if there is one)")
    parser.add_argument(
        "--dir", type=Path, help="of the releases; those of an earlier run are used (default: temporary)"
    )
    parser.add_argument("--keep", action="store_true", help="keep a temporary directory")
    parser.add_argument("--only", type=_parts, default=PARTS, metavar="PART,…", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="one repetition of everything")
    parser.add_argument(
        "--kv-tokens", type=int, default=0, metavar="N", help="KV cache (default: what the engine takes)"
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=Path(f"bench-gpu-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"),
        metavar="FILE",
        help="results; the file with the suffix .jsonl gets each as it comes (default: bench-gpu-TIME.json)",
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of a file of JSON lines, and exit")
    options = parser.parse_args(argv)
    if options.table:
        Report(options.table).console.print(table(Run.read(options.table)))
        return 0
    command = "python -m tests.bench.gpu " + shlex.join(sys.argv[1:] if argv is None else argv)
    with ExitStack() as stack:
        directory = _directory(options, stack)
        try:
            plan = _plan(options, directory)
        except GlmError as error:
            parser.error(f"{error}\n{error.hint}")
        return _run(plan, options, command.strip())


def _parts(text: str) -> tuple[str, ...]:
    chosen = text.split(",")
    if unknown := sorted(set(chosen) - set(PARTS)):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not a part; the parts are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in chosen)


def _directory(options: argparse.Namespace, stack: ExitStack) -> Path:
    if options.dir:
        directory: Path = options.dir.resolve()
        directory.mkdir(parents=True, exist_ok=True)
        return directory
    if options.keep:
        return Path(tempfile.mkdtemp(prefix="glm-bench-"))
    directory = Path(tempfile.mkdtemp(prefix="glm-bench-"))
    stack.callback(releases.remove, directory)
    return directory


def _plan(options: argparse.Namespace, directory: Path) -> Plan:
    """Choose shape and device; raises GlmError if the disk lacks room for the releases, or torch the device."""
    import torch

    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise GlmError("torch finds no CUDA device", hint="--device cpu runs the same steps without one")
    device = options.device or ("cuda" if has_cuda else "cpu")
    card = machine.card()
    has_room = device == "cuda" and card is not None and card.free >= _ROOM
    shape = options.shape or ("9b" if has_room else "small")
    plan = Plan(shape, device, directory, options.quick, options.kv_tokens)
    releases.require_space(plan)
    return plan


def _run(plan: Plan, options: argparse.Namespace, command: str) -> int:
    report = Report(options.json.with_suffix(".jsonl"))
    header = machine.describe() | {"command": command, "shape": plan.shape, "device": plan.device, "quick": plan.quick}
    report.begin(header)
    where = header["card"] if plan.device == "cuda" else "the CPU"
    room = f"{'has' if plan.shape == '9b' else 'lacks'} {_ROOM >> 30} GiB of free GPU memory for the 9B shape"
    report.say(f"shape {plan.shape} on {where}" + ("" if options.shape else f", which {room}"))
    report.say(f"releases in {plan.directory}, figures as they come in {report.path}")
    try:
        measure_in_child(releases.make, "releases", plan, report)  # draws the weights on the device
        if Run.read(report.path).parts["releases"]["outcome"] == "done":
            for part in options.only:
                _measure(part, plan, report)
    except KeyboardInterrupt:
        report.say("interrupted")
    run = Run.read(report.path)
    rows = list(judge(run))
    atomic.write_text(options.json, json.dumps(run.document(rows), indent=2, ensure_ascii=False) + "\n")
    report.console.print()
    report.console.print(table(run))
    report.say(
        f"{options.json} has all figures"
        + (f"; the releases are in {plan.directory}" if options.dir or options.keep else "")
    )
    wanted = {"releases", *options.only}
    return int(any(run.parts.get(part, {}).get("outcome") != "done" for part in wanted))


def _measure(part: str, plan: Plan, report: Report) -> None:
    if part in _ON_DEVICE:
        measure_in_child(_MEASURES[part], part, plan, report)
        return
    with report.part(part):
        _MEASURES[part](plan, report)


def measure_in_child(measure: Measure, part: str, plan: Plan, report: Report) -> None:
    """Measure a part in a process of its own, which appends to the report; if it is killed, the part has failed."""
    process = multiprocessing.get_context("spawn").Process(target=_run_child, args=(measure, part, plan, report.path))
    process.start()
    try:
        process.join()
    finally:
        process.join()  # interrupted, it still records that
    if part not in Run.read(report.path).parts:
        report.end_part(part, "failed", f"its process ended with {process.exitcode}")


def _run_child(measure: Measure, part: str, plan: Plan, path: Path) -> None:
    report = Report(path)
    with suppress(KeyboardInterrupt), report.part(part):
        measure(plan, report)
