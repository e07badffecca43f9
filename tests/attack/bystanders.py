"""Well-behaved clients beside an attack, in a process of their own: what they notice of it.

`python -m tests.attack.bystanders PORT PATIENCE [PID]` asks until its standard input ends, and for each line there
prints as JSON what was noticed since the last one.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
import psutil

from tests.attack.assault import Attack, assault
from tests.box import CODE, Box

PATIENCE = 10.0  # seconds that a client waits for an answer
DRAIN = 30.0  # seconds that a rollout gives to requests that were accepted
HEALTHZ_PAUSE = 0.01  # seconds between two questions of a client
CHAT_PAUSE = 0.02
CLIENTS = 2  # of each kind
TOKENS = 20
FLOOR = 0.05  # seconds that an answer may always take
ATTEMPTS = 3  # an attack that harms does so every time; a busy machine does not
SECONDS = 2.0  # that an attack lasts
ROLLOUTS = (
    ("1.1.0", "--canary", "50", "--step", "3s", "--bake", "2s"),
    ("1.0.0", "--bake", "0"),
    ("1.1.0", "--strategy", "swap", "--bake", "0"),
    ("1.0.0", "--strategy", "swap", "--bake", "0"),
)


@dataclass
class Report:
    """What the clients noticed: seconds of each answer, failures, and the worker's memory in bytes."""

    healthz: list[float] = field(default_factory=list)
    chat: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    rss_before: int = 0
    rss_most: int = 0

    @property
    def growth(self) -> int:
        """Bytes of memory that the worker had more at some moment than before."""
        return self.rss_most - self.rss_before

    def within(self, kind: str, part: float = 0.99) -> float:
        """Seconds within which this part of the answers came."""
        times = sorted(getattr(self, kind))
        return float(times[int(len(times) * part)]) if times else float("inf")

    def __str__(self) -> str:
        return (
            f"healthz p99 {self.within('healthz') * 1000:.0f} ms of {len(self.healthz)}, "
            f"chat p95 {self.within('chat', 0.95) * 1000:.0f} ms, p99 {self.within('chat') * 1000:.0f} ms, "
            f"longest {max(self.chat, default=0) * 1000:.0f} ms of {len(self.chat)}, "
            f"{len(self.failures)} failures {self.failures[:2]}, {self.growth >> 20} MiB more"
        )


class Bystanders:
    """The clients of a host, which also watch the memory of the worker of `slot`."""

    def __init__(self, box: Box, slot: str | None = "blue", *, patience: float = PATIENCE) -> None:
        self._patience = patience
        command = [sys.executable, "-m", "tests.attack.bystanders", box.listen.split(":")[1], str(patience)]
        if slot:
            command += [str(worker.pid) for worker in box.generation(slot).alive_workers]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=CODE, text=True, bufsize=1
        )
        self._take()

    @contextmanager
    def noticing(self) -> Iterator[Report]:
        """Report what they notice during the block; the report is complete after it."""
        report = Report()
        self._take()
        try:
            yield report
        finally:
            vars(report).update(self._take())

    def close(self) -> None:
        """End the clients."""
        self._process.communicate(timeout=2 * self._patience)

    def _take(self) -> dict[str, Any]:
        """Return what was noticed since the last call; waits until the clients have begun."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


def harm(idle: Report, report: Report, *, growth: int, is_work: bool) -> str:
    """Return what an attack did to the clients; empty if they noticed nothing. `growth`: bytes that it may cost.

    `is_work`: its requests are accepted, and the engine computes them as everybody's. While it computes a long prompt,
    the others get a token with each part of it, and a new request begins after it: a few of a hundred answers.
    """
    found, part = [], 0.95 if is_work else 0.99
    if report.failures:
        found.append("failures")
    if report.within("healthz") > max(FLOOR, 5 * idle.within("healthz")):
        found.append("slow healthz")
    if report.within("chat", part) > max(FLOOR, 3 * idle.within("chat")):
        found.append("slow chat")
    if report.growth > growth:
        found.append("memory")
    return f"{', '.join(found)}: {report}; without the attack {idle}" if found else ""


def assert_nothing_is_noticed(
    box: Box, clients: Bystanders, idle: Report, attack: Attack, *, growth: int, is_work: bool = False
) -> set[bytes]:
    """Attack beside the clients, by whose figures `harm` tells nothing; returns the statuses that the attack got.

    See `harm`. It is the same process before and after.
    """
    [before] = box.generation("blue").alive_workers
    for _ in range(ATTEMPTS):
        with clients.noticing() as report:
            statuses = assault(box, attack, SECONDS)
        found = harm(idle, report, growth=growth, is_work=is_work)
        print(report, dict(statuses))
        if not found:
            break
    assert not found
    [after] = box.generation("blue").alive_workers
    assert after.pid == before.pid
    return set(statuses)


def assert_nothing_is_lost_in_rollouts(box: Box, attack: Attack, *, is_work: bool) -> None:
    """Attack beside the clients during a canary, cutovers and swaps, which end as without the attack.

    `is_work`: its requests are accepted, so that in a swap the others may have to wait until they are drained.
    """
    stop = threading.Event()
    attackers = threading.Thread(target=assault, args=(box, attack, 300, stop))
    patience = PATIENCE + DRAIN * is_work
    with closing(Bystanders(box, None, patience=patience)) as clients, clients.noticing() as report:
        attackers.start()
        try:
            records = [box.json("deploy", *options, "--drain", f"{DRAIN}s") for options in ROLLOUTS]
        finally:
            stop.set()
            attackers.join()
    assert not report.failures
    assert {(record["outcome"], record["receipt"]["lost"]) for record in records} == {("done", 0)}


async def _ask(port: int, patience: float, pid: int | None = None) -> None:
    """Ask until standard input ends, and print a report since the last one for each line there."""
    worker = psutil.Process(pid) if pid else None
    report, stop = Report(), asyncio.Event()
    limits = httpx.Limits(max_connections=2 * CLIENTS)

    async def ask(client: httpx.AsyncClient, kind: str, pause: float) -> None:
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": TOKENS}
        while not stop.is_set():
            began = time.monotonic()
            try:
                if kind == "healthz":
                    reply = await client.get("/healthz")
                else:
                    reply = await client.post("/v1/chat/completions", json=body)
                if reply.status_code != 200:
                    report.failures.append(f"{kind}: {reply.status_code} {reply.text[:80]}")
            except httpx.HTTPError as error:
                report.failures.append(f"{kind}: {error!r}")
            getattr(report, kind).append(time.monotonic() - began)
            await asyncio.sleep(pause)

    async def watch() -> None:
        while worker and not stop.is_set():
            try:
                report.rss_most = max(report.rss_most, worker.memory_info().rss)
            except psutil.NoSuchProcess:
                report.failures.append("the worker has ended")
                return
            await asyncio.sleep(0.02)

    async def tell() -> None:
        nonlocal report
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(asdict(report)), flush=True)
            report = Report(rss_before=worker.memory_info().rss if worker and worker.is_running() else 0)
        stop.set()

    base = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=base, limits=limits, timeout=patience, trust_env=False) as client:
        await client.get("/healthz")
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(ask(client, "healthz", HEALTHZ_PAUSE))
                group.create_task(ask(client, "chat", CHAT_PAUSE))
            group.create_task(watch())
            group.create_task(tell())


if __name__ == "__main__":
    port, patience, *pids = sys.argv[1:]
    asyncio.run(_ask(int(port), float(patience), *map(int, pids)))
