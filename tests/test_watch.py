"""`glmctl status --watch`: a picture on a terminal, lines without one, and a document a line with --json."""

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
from itertools import pairwise
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
    """A terminal of one size in which a person watches, until Ctrl-C."""

    def __init__(self, box: Box, width: int, height: int, *words: str) -> None:
        self.width, self.height = width, height
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self._attributes = termios.tcgetattr(theirs)
        self._theirs = theirs
        env = {name: value for name, value in box.env.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "glmctl", *(words or ("status", "--watch"))],
            env=env | {"TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        self._raw = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._raw.endswith(b"the end"):
            try:
                self._raw += os.read(self._ours, 65536)
            except OSError:
                return

    @property
    def raw(self) -> str:
        return self._raw.decode(errors="replace")

    @property
    def picture(self) -> list[str]:
        """The last picture that is whole, line by line."""
        pictures = self.raw.split(HOME)
        return _plain(pictures[-2]).split("\r\n") if len(pictures) > 2 else []

    def shows(self, *words: str) -> bool:
        """Whether each of the words stands in a line of the picture."""
        return all(any(re.search(word, line) for line in self.picture) for word in words)

    def press_ctrl_c(self) -> tuple[int, bool]:
        """End it; returns the exit code, and whether the terminal's own settings are as they were."""
        os.write(self._ours, CTRL_C)
        self.wait()
        return self._process.returncode, self._same

    def wait(self) -> str:
        """Wait until it has ended; returns all that it wrote."""
        self._process.wait(30)
        os.write(self._theirs, b"the end")
        self._reader.join(10)
        self._same = termios.tcgetattr(self._theirs) == self._attributes
        os.close(self._theirs)
        os.close(self._ours)
        return self.raw


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@dataclass
class Watched:
    """What four who watched one rollout saw of it."""

    pictures: dict[tuple[int, str], list[str]] = field(default_factory=dict)
    """By width and moment."""
    ends: dict[int, tuple[int, bool, str]] = field(default_factory=dict)
    """Exit code, whether the terminal is as it was, and the last that was written to it."""
    lines: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    once: str = ""
    table: str = ""


@contextmanager
def _watching(box: Box, path: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody who watches without a terminal."""
    with path.open("wb") as out:
        process = subprocess.Popen(["glmctl", "status", "--watch", *words], env=box.env, stdout=out)
        yield process
        process.send_signal(signal.SIGINT)
        process.wait(20)


@pytest.fixture(scope="module")
def watched(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A canary deploy that is promoted, bakes, and is rolled back, under four pairs of eyes."""
    directory, seen = tmp_path_factory.mktemp("watched"), Watched()
    with live_host(checkpoints) as box:
        terminals = [Terminal(box, 80, 24), Terminal(box, 140, 40)]

        def keep(moment: str, *words: str) -> None:
            for one in terminals:
                wait_for(lambda one=one: one.shows(*words), what=f"{words} at {one.width}: {one.picture}")  # type: ignore[misc]
                seen.pictures[one.width, moment] = one.picture

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
            for one in terminals:
                seen.ends[one.width] = (*one.press_ctrl_c(), one.raw)
        looking = Terminal(box, 80, 24, "status")
        seen.once = looking.wait()
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
def test_a_terminal_shows_both_slots_and_the_timeline(watched: Watched, width: int) -> None:
    """Beside each other: version, state, gate, share, times; below: what is done, under way, and to come."""
    picture = watched.pictures[width, "canary"]
    text = "\n".join(picture)
    slots = next(line for line in picture if "blue #1 live" in line)
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
def test_the_timeline_moves_on(watched: Watched, width: int) -> None:
    """The second step, the bake with its time, and at the end the rollback with what it came to."""
    second = "\n".join(watched.pictures[width, "second step"])
    assert re.search(r"✓ canary 25 %", second)
    assert re.search(r"share +50 % .*share +50 %", second)
    bake = "\n".join(watched.pictures[width, "bake"])
    assert re.search(r"✓ cutover", bake)
    assert re.search(r"● bake +\d\d:\d\d:\d\d +\d+ of 600 s", bake)
    assert re.search(r"╭─ blue #1 ─.*╭─ green #1 live ─", bake)
    end = "\n".join(watched.pictures[width, "end"])
    assert "rollback done in" in re.sub(r"\s+", " ", end)
    assert "●" not in end


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40)])
def test_every_picture_fits_its_terminal(watched: Watched, width: int, height: int) -> None:
    """As many lines as there are, each as wide as it is, so that one is painted over the other without a blank."""
    for (wide, moment), picture in watched.pictures.items():
        if wide == width:
            assert len(picture) == height, moment
            assert {len(line) for line in picture} == {width}, moment
            assert [line for line in picture if line.strip()][-1].startswith("╰"), moment
    assert "\x1b[2J" not in watched.ends[width][2]


@pytest.mark.parametrize("width", [80, 140])
def test_ctrl_c_leaves_the_terminal_as_it_was(watched: Watched, width: int) -> None:
    """Exit code 0, the cursor back, the picture gone, and not a word behind it."""
    code, same, raw = watched.ends[width]
    assert (code, same) == (0, True)
    assert raw.count("\x1b[?1049h") == raw.count(LEFT) == 1
    after = raw[raw.rindex(LEFT) + len(LEFT) :]
    assert _plain(after).removesuffix("the end") == ""
    assert raw.rindex(CURSOR) > raw.rindex("\x1b[?25l")


def test_without_watch_the_picture_is_printed_once(watched: Watched) -> None:
    """On a terminal `status` is the same picture, left where it was printed; elsewhere a table."""
    once = _plain(watched.once)
    assert "\x1b[?1049h" not in watched.once
    assert re.search(r"╭─ blue #1 live ─.*╭─ green", once)
    assert "✓ rollback" in once
    head, blue, *_ = watched.table.splitlines()
    assert head.split()[:6] == ["slot", "version", "state", "gate", "share", "gen"]
    assert head.split()[-2:] == ["memory", "p95"]
    assert re.match(r"blue \(live\) +1\.0\.0 +ready +open +100 % ", blue)


def test_without_a_terminal_it_is_a_line_a_change(watched: Watched) -> None:
    """No escapes, no line twice in a row, and each phase that holds is told."""
    assert watched.codes == [0, 0]
    assert all(before != after for before, after in pairwise(watched.lines))
    assert not any("\x1b" in line for line in watched.lines)
    assert all(line.startswith("live ") for line in watched.lines)
    told = "\n".join(watched.lines)
    assert "live blue; blue 1.0.0 ready gate open 75 %" in told
    assert "green 1.1.0 ready gate closed 25 %" in told
    assert "deploy of 1.1.0 in canary" in told
    assert "live green; blue 1.0.0 ready gate closed 0 %" in told
    assert "live blue" in watched.lines[-1]


def test_in_json_it_is_a_document_a_line(watched: Watched) -> None:
    """Each line is one whole document, with the figures of both slots; what is not known is null."""
    documents: list[dict[str, Any]] = [json.loads(line) for line in watched.documents]
    assert len(documents) > 5
    assert all(before != after for before, after in pairwise(documents))
    for one in documents:
        assert set(one) == {"live", "listen", "slots", "rollout", "summary"}
        for slot in one["slots"].values():
            assert set(slot) == {
                "version", "state", "gate", "generation", "share", "mirror", "in_flight", "connections", "workers",
                "memory", "requests_per_s", "p95", "ttft_p95", "status_text",
            }  # fmt: skip
    first, busy = documents[0], [one for one in documents if one["slots"]["green"]["p95"]]
    assert [first["slots"]["green"][name] for name in ("requests_per_s", "p95", "ttft_p95")] == [None] * 3
    assert busy
    for name in ("blue", "green"):
        slot = busy[0]["slots"][name]
        assert slot["requests_per_s"] > 0
        assert 0 < slot["ttft_p95"] <= slot["p95"] < 30
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
    ids=["none", "since a second", "since ten", "of half a minute", "more than are kept"],
)
def test_requests_per_second(
    box_host: Host, monkeypatch: pytest.MonkeyPatch, ats: list[float], expected: float
) -> None:
    """Over half a minute, or as long as there were any; a slot that was just brought up is not shown too slow."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(Samples, "new", lambda _: [Sample(at, 0.5, 0.1, 200) for at in ats])
    stats = RecentStats(box_host, "blue", "1.0.0")
    stats.look()
    assert stats.requests_per_s == pytest.approx(expected, rel=0.01)
    assert stats.p95 == (0.5 if ats else None)
    assert stats.ttft_p95 == (0.1 if ats else None)


def test_mirrored_answers_are_not_the_live_slots_own(box_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the candidate was asked too stands in the live slot's rings, and is none of its requests or times."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    own, mirrored = Sample(999.0, 0.2, None, 200), Sample(999.5, 9.0, None, 200, kind=3)
    monkeypatch.setattr(Samples, "new", lambda _: [mirrored, own])
    stats = RecentStats(box_host, "blue", "1.0.0")
    stats.look()
    assert (stats.requests_per_s, stats.p95) == (1.0, 0.2)
    assert stats.between(0, mirrored=True).samples == [mirrored]


@pytest.fixture
def box_host(tmp_path: Path) -> Host:
    """Where nothing is."""
    return Host(True, tmp_path, tmp_path, tmp_path, tmp_path, tmp_path)


def test_a_slot_whose_workers_a_swap_sent_home_is_vacant(box: Box) -> None:
    """While the new version bakes alone, the old slot is `vacant`: its unit is up, and nobody is in there."""
    deploy = box.begin("deploy", "1.1.0", "--strategy", "swap", "--bake", "600s")
    box.await_phase(deploy, "bake")
    slots = box.json("status")["slots"]
    assert (slots["blue"]["state"], slots["blue"]["workers"], slots["green"]["state"]) == ("vacant", 0, "ready")
    assert box.show("glm@blue.service", "ActiveState") == "active"
    deploy.kill()
    deploy.communicate(timeout=60)


def test_a_slot_whose_worker_was_killed_is_not_vacant(box: Box) -> None:
    """A worker that was killed is replaced: the slot is starting until then, and never vacant."""
    one = box.generation("blue")
    os.kill(one.master, signal.SIGSTOP)  # so that nobody replaces it while we look
    kill(one.living[0].pid)
    wait_for(lambda: not box.generation("blue").living)
    assert box.json("status")["slots"]["blue"]["state"] == "starting"
    os.kill(one.master, signal.SIGCONT)


def test_a_controller_that_dies_is_noticed(box: Box) -> None:
    """Whoever watches sees how its rollout was ended, and that the candidate has no share left."""
    deploy = box.begin("deploy", "1.1.0", "--canary", "50", "--step", "pause")
    box.await_phase(deploy, "canary")
    terminal = Terminal(box, 140, 40)
    wait_for(lambda: terminal.shows("● canary 50 %"), what="the step under way")
    kill(deploy.pid)
    wait_for(lambda: terminal.shows("✗ canary 50 %", "1.0.0 serves as before"), what="how it was ended")
    assert terminal.press_ctrl_c() == (0, True)
    assert box.json("status")["slots"]["blue"]["share"] == 100
    deploy.communicate(timeout=60)
