"""How many equal versions does the analysis roll back on a busy machine, and how soon does it roll back worse ones?

Every rollout is a real one under the mixed load: canary steps, then a bake. Meanwhile every core is loaded by bursts
of other work. The versions have the same weights; the worse ones have a fault: each answer takes half as long again, or
one in twenty fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import getloadavg, sched_getaffinity
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from service.demo_models import tiny
from tests.box import Box, empty_host

KINDS = {"equal": "equal", "slower": "p95 +50 %", "failing": "5 % errors"}
LIVE, EQUAL = "1.0.0", "1.1.0"
SHORTEST, LONGEST, GAP = 0.3, 5.0, 4.0  # seconds: of a burst, log-uniform between the two; mean pause between bursts
MAX_SECONDS = 600.0  # of one rollout

_BURSTS = """
import os, random, sys, time

core, shortest, longest, gap = int(sys.argv[1]), *map(float, sys.argv[2:])
os.sched_setaffinity(0, {core})
dice = random.Random(core)
while True:
    time.sleep(dice.expovariate(1 / gap))
    end = time.monotonic() + shortest * (longest / shortest) ** dice.random()
    while time.monotonic() < end:
        sum(range(10_000))
"""

# Loaded by the workers of every version; acts on those whose name begins with that of the fault.
_FAULTS = '''
import asyncio, random, time
from deploy.loadtest.requests import PROMPTS
from service.chat.service import ChatService

unchanged = ChatService._stream

async def stream(self, items, started, version):
    messages = items.ag_frame.f_locals["messages"]
    is_load = any(prompt in str(messages) for prompt in PROMPTS)  # the repeated checks must not find the fault
    if version.startswith("failing") and is_load and random.random() < 0.05:
        raise RuntimeError("on purpose")
    items = unchanged(self, items, started, version)
    async for item in stretched(items) if version.startswith("slower") else items:
        yield item

async def stretched(items):
    """Yield each item after one and a half times its time, however far ahead the engine is."""
    begin, arrived = time.monotonic(), asyncio.Queue()

    async def read():
        try:
            async for item in items:
                arrived.put_nowait((time.monotonic(), item, None))
            arrived.put_nowait((time.monotonic(), None, StopAsyncIteration()))
        except Exception as error:
            arrived.put_nowait((time.monotonic(), None, error))

    reader = asyncio.create_task(read())
    try:
        while True:
            at, item, error = await arrived.get()
            await asyncio.sleep(begin + 1.5 * (at - begin) - time.monotonic())
            if isinstance(error, StopAsyncIteration):
                return
            if error:
                raise error
            yield item
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await items.aclose()

ChatService._stream = stream
'''


@dataclass(frozen=True)
class Outcome:
    """One rollout."""

    kind: str
    is_rolled_back: bool
    window: str
    """The window of the last verdict: a canary step, or the bake."""
    seconds: float
    """From the beginning of the first window to the end of the last one."""
    reason: str
    load: float
    """The load average of the machine over the last minute, when the rollout ended."""
    analysis: list[dict[str, Any]]
    """The verdicts of its record."""

    @classmethod
    def of(cls, kind: str, record: dict[str, Any]) -> Outcome:
        """Read the record of a rollout."""
        verdicts = record["analysis"]
        return cls(
            kind,
            record["outcome"] == "rolled back",
            verdicts[-1]["window"] if verdicts else record["steps"][-1]["phase"],
            round(sum(verdict["seconds"] for verdict in verdicts), 1),
            record["reason"] or "",
            round(getloadavg()[0], 1),
            verdicts,
        )


@contextmanager
def bursts() -> Iterator[None]:
    """Load each core by bursts of computation with pauses."""
    words = [str(number) for number in (SHORTEST, LONGEST, GAP)]
    processes = [
        subprocess.Popen(["setpriv", "--pdeathsig=KILL", sys.executable, "-c", _BURSTS, str(core), *words])
        for core in sched_getaffinity(0)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def prepare(box: Box, scratch: Path) -> None:
    """Add one release for each kind, all of the same weights, and make one live."""
    tiny.make(scratch / "model", seed=1, dtype="float32")
    for version in (LIVE, EQUAL, "slower", "failing"):
        box.glmctl("release", "add", str(scratch / "model"), "--version", version)
    (scratch / "sitecustomize.py").write_text(_FAULTS)
    box.drop_in(f"[Service]\nEnvironment=PYTHONPATH={scratch}\n")
    box.glmctl("deploy", LIVE)


def roll_out(box: Box, kind: str, words: Sequence[str]) -> Outcome:
    """Deploy a version of a kind; raises AssertionError if it neither goes live nor is rolled back."""
    live = box.slots.version(box.slots.live or "blue")
    version = kind if kind != "equal" else EQUAL if live == LIVE else LIVE
    done = box.glmctl("deploy", version, *words, expect=None, timeout=MAX_SECONDS)
    if done.returncode not in (0, 5, 6):
        raise AssertionError(done.stderr)
    outcome = Outcome.of(kind, box.json("history")["rollouts"][-1])
    if kind != "equal" and not outcome.is_rolled_back:
        box.glmctl("rollback")  # else the next one would find it live
    return outcome


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rollouts, kinds in turn, and print each and the sums."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.equal_versions", description=__doc__)
    for kind, text in KINDS.items():
        text = text.replace("%", "%%")
        parser.add_argument(f"--{kind}", type=int, default=100, help=f"rollouts, {text} (default: %(default)s)")
    parser.add_argument("--canary", default="10,30,50", help="steps in percent (default: %(default)s)")
    parser.add_argument("--step", default="20s", help="length of a step and of the bake (default: %(default)s)")
    parser.add_argument("--worse-step", default="60s", help="the same for worse versions (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the mixed load (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append each outcome to FILE, one document a line")
    options = parser.parse_args(argv)
    console = Console()
    left = {kind: getattr(options, kind) for kind in KINDS}
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as directory, empty_host("model") as box, bursts():
        box.host.policy.write_text("[analysis]\nchecks_every = 600\n")
        prepare(box, Path(directory))
        with box.load(Path(directory), seconds=7 * 24 * 3600, scale=options.scale):
            while any(left.values()):
                # The kind of which the greatest part is left, so that all of them meet the same hours.
                kind = max(left, key=lambda name: left[name] / (getattr(options, name) or 1))
                left[kind] -= 1
                length = options.step if kind == "equal" else options.worse_step
                words = ("--canary", options.canary, "--step", length, "--bake", length)
                outcomes.append(roll_out(box, kind, words))
                one = outcomes[-1]
                end = f"rolled back: {one.reason}" if one.is_rolled_back else "went live"
                place = f"{one.window}, {one.seconds:.0f} s, load {one.load}"
                console.print(
                    f"{time.strftime('%H:%M:%S')} {KINDS[kind]}: {end} ({place})", highlight=False, soft_wrap=True
                )
                if options.json:
                    with options.json.open("a") as file:
                        file.write(json.dumps(vars(one)) + "\n")
    console.print(_table(outcomes))


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table("version", "rollouts", "rolled back", "median s", "longest s", "in", title="rollouts under bursts")
    table.caption = "seconds from the first canary step to the verdict; target: 2 of 100 equal, 98 of 100 worse"
    for kind, name in KINDS.items():
        found = [one for one in outcomes if one.kind == kind]
        back = [one for one in found if one.is_rolled_back]
        seconds = [one.seconds for one in back]
        windows = ", ".join(
            f"{window}: {sum(one.window == window for one in back)}" for window in sorted({one.window for one in back})
        )
        table.add_row(
            name,
            str(len(found)),
            str(len(back)),
            f"{median(seconds):.0f}" if back else "-",
            f"{max(seconds):.0f}" if back else "-",
            windows,
        )
    return table


if __name__ == "__main__":
    main()
