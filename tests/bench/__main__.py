"""`python -m tests.bench`: all benchmarks of `make bench`, one after the other; each can be run alone, too."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.bench import plots
from tests.bench.output import WIDTH
from tests.box import CODE

BENCHMARKS = (
    "switching",
    "steady",
    "growth",
    "rollout",
    "engine",
    "handover",
    "canary",
    "request_cost",
    "logs_and_metrics",
    "swap",
)
WHOLE = {"engine"}  # its --json is one document, in a file of its own
LIMIT = 1500  # seconds of one benchmark


def command(name: str, *, quick: bool, path: Path) -> list[str]:
    """Return the argv of one benchmark."""
    own = path.with_name(f"{path.stem}-{name}.json") if name in WHOLE else path
    options = [*(["--quick"] if quick else []), "--json", str(own)]
    return [sys.executable, "-m", f"tests.bench.{name}", *options]


def run(argv: list[str]) -> str | None:
    """Run one benchmark; returns None, or how it failed. Raises KeyboardInterrupt once it has ended."""
    process = subprocess.Popen(argv, cwd=CODE)
    try:
        code = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends what it started
        process.wait(120)
        return f"it did not end within {LIMIT} s"
    except KeyboardInterrupt:
        process.wait(60)  # the terminal has interrupted it, too; it ends what it started
        raise
    return f"it ended with {code}" if code else None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmarks; exits with 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: a check of the benchmarks, no figures")
    parser.add_argument("--only", metavar="NAME[,NAME…]", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", type=Path, default=Path("bench.jsonl"), help="measurements go here [%(default)s]")
    options = parser.parse_args(argv)
    names = options.only.split(",") if options.only else list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    console = Console(width=WIDTH, highlight=False)
    began = time.monotonic()
    failed = []
    for name in names:
        console.rule(name)
        if why := run(command(name, quick=options.quick, path=options.json.resolve())):
            failed.append(f"{name}: {why}")
    console.rule()
    console.print(f"{len(names)} benchmarks in {(time.monotonic() - began) / 60:.1f} minutes")
    path = options.json.resolve()
    if path.exists() and plots.PLOTS.keys() & plots.latest(path).keys():
        pictures = path.with_name(f"{path.stem}-pictures")
        if why := run([sys.executable, "-m", "tests.bench.plots", str(path), "--out", str(pictures)]):
            failed.append(f"plots: {why}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
