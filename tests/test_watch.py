"""`glmctl status` and `status --watch`: a screen on a terminal, lines elsewhere, one document a line with --json."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.analysis.recent import RecentStats
from deploy.analysis.samples import Sample, Samples
from deploy.host import Host
from tests.box import Box, kill, live_host, wait_for

HOME, LEFT, CURSOR = "\x1b[H", "\x1b[?1049l", "\x1b[?25h"
CTRL_C = b"\x03"


class Terminal:
    """glmctl on a pseudo-terminal of fixed size, until Ctrl-C."""

    def __init__(self, box: Box, width: int, height: int, *words: str) -> None:
        self.width, self.height = width, height
        self._controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self._attributes = termios.tcgetattr(terminal)
        self._terminal = terminal
        env = {name: value for name, value in box.env.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "glmctl", *(words or ("status", "--watch"))],
            env=env | {"TERM": "xterm-256color"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        self._raw = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._raw.endswith(b"the end"):
            try:
                self._raw += os.read(self._controller, 65536)
            except OSError:
                return

    @property
    def raw(self) -> str:
        return self._raw.decode(errors="replace")

    @property
    def screen(self) -> list[str]:
        """The lines of the last complete screen."""
        screens = self.raw.split(HOME)
        return _plain(screens[-2]).split("\r\n") if len(screens) > 2 else []

    def shows(self, *patterns: str) -> bool:
        """Return whether every pattern matches a line of the screen."""
        return all(any(re.search(pattern, line) for line in self.screen) for pattern in patterns)

    def press_ctrl_c(self) -> tuple[int, bool]:
        """Press Ctrl-C; returns the exit code, and whether the settings of the terminal were restored."""
        os.write(self._controller, CTRL_C)
        self.wait()
        return self._process.returncode, self._restored

    def wait(self) -> str:
        """Wait for the exit; returns the whole output."""
        self._process.wait(30)
        os.write(self._terminal, b"the end")
        self._reader.join(10)
        self._restored = termios.tcgetattr(self._terminal) == self._attributes
        os.close(self._terminal)
        os.close(self._controller)
        return self.raw


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@dataclass
class Watched:
    """Output of four watchers during one rollout, and of `status` after it."""

    screens: dict[tuple[int, str], list[str]] = field(default_factory=dict)
    """By width of the terminal and moment."""
    ends: dict[int, tuple[int, bool, str]] = field(default_factory=dict)
    """Exit code, whether the terminal was restored, and the raw output; by width."""
    lines: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    once: str = ""
    table: str = ""


@contextmanager
def _watching(box: Box, path: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`status --watch` with its output in a file."""
    with path.open("wb") as out:
        process = subprocess.Popen(["glmctl", "status", "--watch", *words], env=box.env, stdout=out)
        yield process
        process.send_signal(signal.SIGINT)
        process.wait(20)


@pytest.fixture(scope="module")
def watched(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A canary deploy that is promoted twice, bakes and is rolled back, with four watchers."""
    directory, seen = tmp_path_factory.mktemp("watched"), Watched()
    with live_host(checkpoints) as box:
        terminals = [Terminal(box, 80, 24), Terminal(box, 140, 40)]

        def keep(moment: str, *patterns: str) -> None:
            for one in terminals:
                wait_for(lambda one=one: one.shows(*patterns), what=f"{patterns} at {one.width}: {one.screen}")  # type: ignore[misc]
                seen.screens[one.width, moment] = one.screen

        with (
            _watching(box, directory / "lines") as plain,
            _watching(box, directory / "documents", "--json") as in_json,
        ):
            deploy = box.begin("deploy", "1.1.0", "--canary", "25,50", "--step", "pause", "--bake", "600s")
            box.await_phase(deploy, "canary")
            for _ in range(40):
                _ask(box)
            keep("canary", r"● canary 25 %.*[1-9]\d* failed|● canary 25 %.*0 of [1-9]")
            box.glmctl("promote")
            keep("second step", "● canary 50 %")
            box.glmctl("promote")
            keep("bake", "● bake .* of 600 s")
            box.glmctl("rollback")
            deploy.communicate(timeout=60)
            wait_for(lambda: terminals[0].shows("rollback 1.0.0"))
            keep("end", "✓ rollback", "1.0.0 is live in blue")
            for terminal in terminals:
                seen.ends[terminal.width] = (*terminal.press_ctrl_c(), terminal.raw)
        seen.once = Terminal(box, 80, 24, "status").wait()
        seen.table = box.glmctl("status").stdout
        seen.codes = [plain.returncode, in_json.returncode]
        seen.lines = (directory / "lines").read_text().splitlines()
        seen.documents = (directory / "documents").read_text().splitlines()
        yield seen


def _ask(box: Box) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "stream": True}
    answer = httpx.post(f"http://{box.listen}/v1/chat/completions", json=body, timeout=30, trust_env=False)
    assert answer.status_code == 200


@pytest.mark.parametrize("width", [80, 140])
def test_screen(watched: Watched, width: int) -> None:
    """The screen shows both slots side by side, and below them the phases: done, running and to come."""
    screen = watched.screens[width, "canary"]
    text = "\n".join(screen)
    slots = next(line for line in screen if "blue #1 live" in line)
    assert "green #1" in slots
    assert re.search(r"1\.0\.0 +ready, gate open.*1\.1\.0 +ready, gate closed", text)
    assert re.search(r"share +75 % .*share +25 %", text)
    for name in ("in flight", "requests", "p95", "clients", "memory"):
        assert len(re.findall(rf"│ {name} ", text)) == 2, name
    assert re.search(r"p95 +\d[\d.]* m?s ttft \d[\d.]* m?s .*p95 +\d[\d.]* m?s ttft \d[\d.]* m?s ", text)
    marks = re.findall(r"│ ([✓●·✗]) (\w+(?: \d+ %)?) ", text)
    done = [("✓", name) for name in ("preflight", "prepare", "start", "verify")]
    to_come = [("·", name) for name in ("canary 50 %", "cutover", "bake", "retire")]
    assert marks == [*done, ("●", "canary 25 %"), *to_come]
    assert all(re.search(rf"✓ {name} +\d\d:\d\d:\d\d +\d+\.\d s", text) for _, name in done)


@pytest.mark.parametrize("width", [80, 140])
def test_timeline_follows_the_rollout(watched: Watched, width: int) -> None:
    """The screen follows the rollout: second canary step, bake with elapsed time, rollback with its summary."""
    second = "\n".join(watched.screens[width, "second step"])
    assert re.search(r"✓ canary 25 %", second)
    assert re.search(r"share +50 % .*share +50 %", second)
    bake = "\n".join(watched.screens[width, "bake"])
    assert re.search(r"✓ cutover", bake)
    assert re.search(r"● bake +\d\d:\d\d:\d\d +\d+ of 600 s", bake)
    assert re.search(r"╭─ blue #1 ─.*╭─ green #1 live ─", bake)
    end = "\n".join(watched.screens[width, "end"])
    assert "rollback done in" in re.sub(r"\s+", " ", end)
    assert "●" not in end


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40)])
def test_screens_fill_the_terminal(watched: Watched, width: int, height: int) -> None:
    """Every screen fills the terminal exactly, so that drawing over the last one leaves nothing and needs no clear."""
    for (columns, moment), screen in watched.screens.items():
        if columns == width:
            assert len(screen) == height, moment
            assert {len(line) for line in screen} == {width}, moment
            assert [line for line in screen if line.strip()][-1].startswith("╰"), moment
    assert "\x1b[2J" not in watched.ends[width][2]


@pytest.mark.parametrize("width", [80, 140])
def test_ctrl_c_restores_the_terminal(watched: Watched, width: int) -> None:
    """After Ctrl-C: exit code 0, cursor visible, alternate screen left, and no further output."""
    code, restored, raw = watched.ends[width]
    assert (code, restored) == (0, True)
    assert raw.count("\x1b[?1049h") == raw.count(LEFT) == 1
    after = raw[raw.rindex(LEFT) + len(LEFT) :]
    assert _plain(after).removesuffix("the end") == ""
    assert raw.rindex(CURSOR) > raw.rindex("\x1b[?25l")


def test_status_without_watch(watched: Watched) -> None:
    """Without --watch the screen is printed once on a terminal, and a table elsewhere."""
    once = _plain(watched.once)
    assert "\x1b[?1049h" not in watched.once
    assert re.search(r"╭─ blue #1 live ─.*╭─ green", once)
    assert "✓ rollback" in once
    head, blue, *_ = watched.table.splitlines()
    assert head.split()[:6] == ["slot", "version", "state", "gate", "share", "gen"]
    assert head.split()[-2:] == ["memory", "p95"]
    assert re.match(r"blue \(live\) +1\.0\.0 +ready +open +100 % ", blue)


def test_watch_without_a_terminal(watched: Watched) -> None:
    """Without a terminal, a line without escape sequences is printed for every change."""
    assert watched.codes == [0, 0]
    assert all(before != after for before, after in pairwise(watched.lines))
    assert not any("\x1b" in line for line in watched.lines)
    assert all(line.startswith("live ") for line in watched.lines)
    text = "\n".join(watched.lines)
    assert "live blue; blue 1.0.0 ready gate open 75 %" in text
    assert "green 1.1.0 ready gate closed 25 %" in text
    assert "deploy of 1.1.0 in canary" in text
    assert "live green; blue 1.0.0 ready gate closed 0 %" in text
    assert "live blue" in watched.lines[-1]


def test_watch_in_json(watched: Watched) -> None:
    """With --json every line is one document with the figures of both slots; unknown figures are null."""
    documents: list[dict[str, Any]] = [json.loads(line) for line in watched.documents]
    assert len(documents) > 5
    assert all(before != after for before, after in pairwise(documents))
    for one in documents:
        assert set(one) == {"live", "listen", "slots", "devices", "rollout", "phases", "verdict", "summary"}
        assert sum(slot["share"] for slot in one["slots"].values()) == 100
        for slot in one["slots"].values():
            assert set(slot) == {
                "version", "state", "gate", "generation", "share", "mirror", "in_flight", "connections", "workers",
                "devices", "memory", "requests_per_s", "p95", "ttft_p95", "errors", "load",
                "status_text",
            }  # fmt: skip
    first = documents[0]
    busy = [one for one in documents if all(one["slots"][slot]["ttft_p95"] for slot in ("blue", "green"))]
    assert [first["slots"]["green"][name] for name in ("requests_per_s", "p95", "ttft_p95")] == [None] * 3
    assert busy
    for name in ("blue", "green"):
        slot = busy[0]["slots"][name]
        assert slot["requests_per_s"] > 0
        assert 0 < slot["ttft_p95"] <= slot["p95"] < 30
        assert slot["errors"] is not None
    canary = [one for one in documents if one["rollout"]["phase"] == "canary" and not one["rollout"]["outcome"]]
    shown = [[phase for phase in one["phases"] if phase["state"] == "running"] for one in canary]
    assert [share for share, _ in groupby(phase["share"] for [phase] in shown)] == [25, 50]
    assert {phase["seconds"] for [phase] in shown} == {None}
    assert any(metric["candidate_requests"] for one in canary if one["verdict"] for metric in one["verdict"]["metrics"])
    assert documents[-1]["verdict"] is None
    phases = [one["rollout"]["phase"] for one in documents if one["rollout"]["version"] == "1.1.0"]
    assert [phase for phase in ("start", "canary", "bake") if phase in phases] == ["start", "canary", "bake"]


@pytest.mark.parametrize(
    ("ats", "expected"),
    [
        ([], 0.0),
        ([999.0] * 4, 4.0),
        ([990.0] * 5 + [995.0] * 5, 1.0),
        ([900.0] * 50 + [980.0] * 60, 2.0),
        ([1000 - number / 2500 for number in range(25_000, 0, -1)], 2500.0),
    ],
    ids=["none", "for 1 s", "for 10 s", "for more than 30 s", "more than are kept"],
)
def test_requests_per_second(
    box_host: Host, monkeypatch: pytest.MonkeyPatch, ats: list[float], expected: float
) -> None:
    """The rate is over 30 s, or since the first response, so that it is right for a slot that has just started."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(Samples, "new", lambda _: [Sample(at, 0.5, 0.1, 200) for at in ats])
    stats = RecentStats(box_host, "blue", "1.0.0")
    stats.update()
    assert stats.requests_per_s == pytest.approx(expected, rel=0.01)
    assert stats.p95 == (0.5 if ats else None)
    assert stats.ttft_p95 == (0.1 if ats else None)
    assert stats.errors == (0.0 if ats else None)


def test_share_of_errors(box_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed responses count among those of the last 30 s, older ones no more."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    found = [Sample(960.0, 0.5, None, 500), *(Sample(990.0, 0.5, None, status) for status in (200, 200, 200, 500))]
    monkeypatch.setattr(Samples, "new", lambda _: found)
    stats = RecentStats(box_host, "blue", "1.0.0")
    stats.update()
    assert stats.errors == 0.25


def test_mirrored_responses_do_not_count_for_the_live_slot(box_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirrored responses stand in the live slot's rings and count neither in its rate nor in its times."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    own, mirrored = Sample(999.0, 0.2, None, 200), Sample(999.5, 9.0, None, 200, kind=3)
    monkeypatch.setattr(Samples, "new", lambda _: [mirrored, own])
    stats = RecentStats(box_host, "blue", "1.0.0")
    stats.update()
    assert (stats.requests_per_s, stats.p95) == (1.0, 0.2)
    assert stats.between(0, mirrored=True).mirrored == [mirrored]


@pytest.fixture
def box_host(tmp_path: Path) -> Host:
    """A host without files."""
    return Host(True, tmp_path, tmp_path, tmp_path, tmp_path, tmp_path)


@pytest.mark.long
def test_vacant_slot_during_a_swap(box: Box) -> None:
    """While a swapped version bakes, the old slot is `vacant`: its unit is active and has no workers."""
    deploy = box.begin("deploy", "1.1.0", "--strategy", "swap", "--bake", "600s")
    box.await_phase(deploy, "bake")
    slots = box.json("status")["slots"]
    assert (slots["blue"]["state"], slots["blue"]["workers"], slots["green"]["state"]) == ("vacant", 0, "ready")
    assert box.show("glm@blue.service", "ActiveState") == "active"
    deploy.kill()
    deploy.communicate(timeout=60)


def test_slot_with_a_killed_worker(box: Box) -> None:
    """A slot whose only worker was killed is `starting`, not `vacant`, until its master replaces the worker."""
    blue = box.generation("blue")
    os.kill(blue.master, signal.SIGSTOP)  # so that it does not replace the worker yet
    kill(blue.alive_workers[0].pid)
    wait_for(lambda: not box.generation("blue").alive_workers)
    assert box.json("status")["slots"]["blue"]["state"] == "starting"
    os.kill(blue.master, signal.SIGCONT)


def test_killed_controller(box: Box) -> None:
    """`status --watch` shows that the controller was killed, and what to do; it changes nothing."""
    deploy = box.begin("deploy", "1.1.0", "--canary", "50", "--step", "pause")
    box.await_phase(deploy, "canary")
    terminal = Terminal(box, 140, 40)
    wait_for(lambda: terminal.shows("● canary 50 %"), what="the canary step")
    kill(deploy.pid)
    deploy.communicate(timeout=60)
    wait_for(lambda: terminal.shows("was interrupted in canary: `glmctl resume`"), what="the end of the controller")
    before = box.json("history")
    time.sleep(2)
    assert terminal.press_ctrl_c() == (0, True)
    assert box.json("history") == before
    status = box.json("status")
    assert status["slots"]["blue"]["share"] == 50
    assert status["rollout"]["interrupted"] is True
    assert "interrupted in canary" in status["summary"]
    box.glmctl("resume")
    status = box.json("status")
    assert (status["slots"]["blue"]["share"], status["rollout"]["interrupted"]) == (100, False)
