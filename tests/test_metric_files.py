"""The files of the metrics: whatever processes do, and however they end, each value is counted once."""

from __future__ import annotations

import errno
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.mmap_dict import mmap_key

from service.contract import processes
from service.metric_files import Collector, ended, merge_ended, remove_gauges
from service.metric_files.allocation import _AllocatedDict
from service.metric_files.directory import locked
from service.metric_files.expiry import Sum

BOUNDS = (1.0, 2.0, float("inf"))
LEFT = {"counter_ended.db", "histogram_ended.db"}
FULL = OSError(errno.ENOSPC, "No space left on device")

Samples = dict[tuple[str, str], float]  # by the sample's name and its `le`


class Host:
    """A directory of metrics, the processes that live, and the values that a scrape should show."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.living: dict[int, dict[str, Any]] = {}
        self.expected: Counter[tuple[str, str]] = Counter()

    def start(self, pid: int) -> None:
        self.living.setdefault(pid, {})

    def end(self, pid: int) -> None:
        for file in self.living.pop(pid, {}).values():
            file.close()

    def add(self, pid: int, amount: int) -> None:
        """Count `amount`, and observe it in a histogram."""
        self._increase(pid, "counter", "c_total", "", amount)
        self._increase(pid, "histogram", "h_sum", "", amount)
        for bound in BOUNDS:
            self._increase(pid, "histogram", "h_bucket", str(bound), bound == BOUNDS[bisect_left(BOUNDS, amount)])
        self._file(pid, "gauge_livesum").write_value(mmap_key("g", "g", [], [], "help"), float(amount), 0.0)
        self.expected["c_total", ""] += amount
        self.expected["h_sum", ""] += amount
        self.expected["h_count", ""] += 1
        for one in BOUNDS:
            self.expected["h_bucket", str(one)] += amount <= one

    def _increase(self, pid: int, kind: str, name: str, bound: str, amount: int) -> None:
        labels = (["le"], [bound]) if bound else ([], [])
        key = mmap_key(name.split("_")[0] if kind == "histogram" else "c", name, *labels, "help")
        file = self._file(pid, kind)
        file.write_value(key, file.read_value(key)[0] + amount, 0.0)

    def _file(self, pid: int, kind: str) -> Any:
        files = self.living[pid]
        if kind not in files:
            files[kind] = _AllocatedDict(str(self.path / f"{kind}_{pid}.db"))
        return files[kind]

    def scrape(self) -> Samples:
        found = {}
        for metric in Collector(None, str(self.path)).collect():
            for sample in metric.samples:
                if metric.type != "gauge":
                    bound = sample.labels.get("le", "")
                    found[sample.name, str(float(bound)) if bound else ""] = sample.value
        return found

    def names(self) -> set[str]:
        return {path.name for path in self.path.iterdir()}

    def check(self) -> None:
        shown, expected = self.scrape(), dict(self.expected)
        assert {key: value for key, value in shown.items() if value} == {k: v for k, v in expected.items() if v}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host(tmp_path)
    monkeypatch.setattr(processes, "start_ticks", lambda pid: 1 if pid in made.living else None)
    yield made
    for pid in list(made.living):
        made.end(pid)


class Killed(BaseException):
    """The process ends here: no handler of errors runs."""


def after(steps: int, patch: pytest.MonkeyPatch, error: BaseException) -> list[int]:
    """Let the merge do so many steps that change the directory, then raise; returns the number of those it did."""
    done = [0]

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if done[0] == steps:
                raise error
            done[0] += 1
            return step(*arguments, **options)

        return call

    patch.setattr(Path, "rename", counted(Path.rename))
    patch.setattr(Path, "unlink", counted(Path.unlink))
    patch.setattr(Path, "open", counted(Path.open))
    return done


PIDS = st.integers(101, 104)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), PIDS, st.integers(0, 4)),
        st.tuples(st.just("end"), PIDS, st.just(0)),
        st.tuples(st.just("merge"), st.just(0), st.just(0)),
        st.tuples(st.just("killed"), st.just(0), st.integers(0, 12)),
        st.tuples(st.just("full"), st.just(0), st.integers(0, 12)),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(operations=OPERATIONS)
def test_every_value_is_counted_once_at_any_time(operations: list[tuple[str, int, int]]) -> None:
    """Processes count, end, and start again with the same pid; merges run, are killed at any step, or find no room."""
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        host = Host(Path(directory))
        patch.setattr(processes, "start_ticks", lambda pid: 1 if pid in host.living else None)
        for name, pid, number in operations:
            with pytest.MonkeyPatch.context() as faults:
                match name:
                    case "add":
                        host.start(pid)
                        host.add(pid, number)
                    case "end":
                        host.end(pid)
                    case "merge":
                        merge_ended(host.path)
                    case "killed":
                        after(number, faults, Killed())
                        with suppress(Killed):
                            merge_ended(host.path)
                    case "full":
                        faults.setattr(ended, "_write", lambda *_: (_ for _ in ()).throw(FULL))
                        merge_ended(host.path)
            host.check()
        for pid in list(host.living):
            host.end(pid)
        for _ in range(2):  # one for what is left of a merge without room, if a pid was used twice
            merge_ended(host.path)
        host.check()
        assert host.names() <= LEFT


def test_a_merge_that_is_killed_at_any_step_is_completed(host: Host) -> None:
    """Also if the next one is killed too, and a process with the same pid counts meanwhile."""
    steps = 0
    while True:
        for pid in (1, 2, 3):
            host.start(pid)
            host.add(pid, steps % 5)
        host.end(1)
        host.end(2)
        with pytest.MonkeyPatch.context() as patch:
            after(steps, patch, Killed())
            try:
                merge_ended(host.path)
            except Killed:
                killed = True
            else:
                killed = False
        host.check()
        with pytest.MonkeyPatch.context() as patch:
            after(steps // 2, patch, Killed())
            with suppress(Killed):
                merge_ended(host.path)
        host.check()
        if not killed:
            break
        steps += 1
    assert steps > 10, "it was killed at each of them"
    merge_ended(host.path)
    merge_ended(host.path)
    host.check()
    assert host.names() == LEFT | {f"{kind}_3.db" for kind in ("counter", "histogram", "gauge_livesum")}


def test_files_of_processes_that_live_are_not_touched(host: Host) -> None:
    """Neither their names nor their content, while those of others are merged."""
    for pid in (1, 2):
        host.start(pid)
        host.add(pid, 2)
    host.end(1)
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in host.path.glob("*_2.db")}
    merge_ended(host.path)
    assert {path.name: (path.stat().st_ino, path.read_bytes()) for path in host.path.glob("*_2.db")} == before
    assert len(before) == 3
    remove_gauges(host.path, 2)
    assert host.names() == LEFT | {"counter_2.db", "histogram_2.db"}


def test_a_thousand_ended_processes_leave_two_files(host: Host) -> None:
    """Whether each is merged when it ends, or all are found at a start; a call merges a bounded number of files."""
    for pid in range(1, 1001):
        for kind, name in (("counter", "c_total"), ("histogram", "h_sum")):
            ended._write(host.path / f"{kind}_{pid}.db", {mmap_key(name[0], name, [], [], "help"): Sum(1.0, 0.0)})
        (host.path / f"gauge_livesum_{pid}.db").write_bytes(b"")
        if pid <= 500:
            merge_ended(host.path)
            assert host.names() == LEFT
    calls = 0
    while host.names() != LEFT:
        before = len(list(host.path.glob("counter_*")))
        merge_ended(host.path)
        assert before - len(list(host.path.glob("counter_*"))) <= ended.BATCH
        calls += 1
    assert calls == 500 // ended.BATCH
    assert host.scrape() == {("c_total", ""): 1000.0, ("h_sum", ""): 1000.0}


def test_a_process_opens_its_files_when_no_merge_runs(host: Host) -> None:
    """A merge that has found its pid unused would take its new file for that of the process before."""
    host.start(1)
    with locked(host.path, exclusively=True) as is_held:
        assert is_held
        thread = threading.Thread(target=host.add, args=(1, 2))
        thread.start()
        time.sleep(0.1)
        assert host.names() == set()
    thread.join()
    assert "counter_1.db" in host.names()


def test_a_merge_that_is_stopped_hinders_nobody(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scrapes and new processes go on without the lock; others do not merge."""
    monkeypatch.setattr("service.metric_files.directory._WAIT", 0.01)
    host.start(1)
    host.add(1, 2)
    host.end(1)
    with locked(host.path, exclusively=True):
        host.start(2)
        host.add(2, 3)
        before = host.names()
        merge_ended(host.path)
        assert host.names() == before
        host.check()


def test_damaged_files_of_ended_processes_are_removed(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """Those of others count; a damaged sum does not hinder the next one."""
    host.start(1)
    host.add(1, 2)
    host.end(1)
    (host.path / "counter_7.db").write_bytes(bytes(range(200)))
    (host.path / "counter_8.db").write_bytes(b"")
    ended._write(host.path / "counter_9.db", {"5": Sum(1.0, 0.0), "[1, 2, 3, 4]": Sum(2.0, 0.0)})
    (host.path / "histogram_ended.db").write_bytes(b"nothing")
    merge_ended(host.path)
    host.check()
    assert host.names() == LEFT
    assert "counter_7.ended are lost" in caplog.text
