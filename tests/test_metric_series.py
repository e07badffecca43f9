"""Which series a scrape has: those of the processes that live, and what the counters of others have come to."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from prometheus_client import values

from service.contract import processes
from service.metric_files import Collector, directory, ended, expiry, merge_ended

PIDS = st.sampled_from([101, 102, 103])
SLOTS = st.sampled_from(["blue", "green"])
VERSIONS = st.sampled_from(["1.0.0", "1.1.0", "1.2.0"])
SHORT, LONG = expiry.KEPT / 4, expiry.KEPT + 1

Labels = tuple[str, str]  # slot and version


class Worker:
    """A process that has the metrics of one version, as prometheus_client writes them."""

    def __init__(self, name: str, slot: str, version: str) -> None:
        self.slot, self.version = slot, version
        library: Any = values  # it has no types
        self._values = library.MultiProcessValue(lambda: name)
        self.gauge = 0.0
        self.had: set[Labels] = set()
        """For what it has counted, which it keeps to its end."""
        self.set_gauge(1.0)

    @property
    def labels(self) -> Labels:
        return self.slot, self.version

    def value(self, kind: str, name: str, **more: Any) -> Any:
        return self._values(kind, name.partition("_")[0], name, ("slot", "version"), self.labels, "help", **more)

    def set_gauge(self, value: float) -> None:
        self.gauge = value
        self.had.add(self.labels)
        self.value("gauge", "g", multiprocess_mode="livesum").set(value)

    def count(self, amount: int) -> None:
        self.value("counter", "c_total").inc(amount)
        self.value("histogram", "h_sum").inc(amount)

    def swap(self, version: str) -> None:
        """Take other weights: what is set of the version before does not count any more."""
        if version != self.version:
            self.set_gauge(math.nan)
            self.version = version
            self.set_gauge(1.0)

    def end(self) -> None:
        self._values.close_all_files()


class Series(RuleBasedStateMachine):
    """A host on which workers are born and killed, pids are used again, and time passes; it is scraped all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.running: dict[int, int] = {}
        """The start times of all processes, by pid; not all of them are workers."""
        self.workers: dict[int, Worker] = {}
        self.born = 0
        self.passed = 0.0
        self.totals = Counter[Labels]()
        self.last: dict[Labels, float] = {}
        """When a worker that had a slot and version was last seen."""
        self.scratch = tempfile.TemporaryDirectory()
        self.path = Path(self.scratch.name)
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("PROMETHEUS_MULTIPROC_DIR", self.scratch.name)
        self.patch.setattr(processes, "start_ticks", self.running.get)
        self.patch.setattr(expiry, "time", self)
        self.patch.setattr(ended, "time", self)

    def time(self) -> float:
        """Return the time of the host, in place of time.time."""
        return time.time() + self.passed

    def _start(self, pid: int) -> None:
        self.born += 1
        self.running[pid] = self.born

    def _start_worker(self, pid: int, slot: str, version: str) -> None:
        self._start(pid)
        self.workers[pid] = Worker(directory._name.__wrapped__(pid), slot, version)

    def _count(self, pid: int, amount: int) -> None:
        self.workers[pid].count(amount)
        self.totals[self.workers[pid].labels] += amount

    def _end(self, pid: int) -> None:
        del self.running[pid]
        if worker := self.workers.pop(pid, None):
            worker.end()

    @precondition(lambda self: len(self.running) < 3)
    @rule(data=st.data(), slot=SLOTS, version=VERSIONS)
    def birth(self, data: st.DataObject, slot: str, version: str) -> None:
        """A worker starts with a pid that no process has; others may have had it."""
        self._start_worker(data.draw(PIDS.filter(lambda pid: pid not in self.running)), slot, version)

    @precondition(lambda self: len(self.running) < 3)
    @rule(data=st.data())
    def another_program(self, data: st.DataObject) -> None:
        """A program that is none of ours gets the pid of a dead worker."""
        self._start(data.draw(PIDS.filter(lambda pid: pid not in self.running)))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), amount=st.integers(0, 5), gauge=st.integers(0, 3))
    def count(self, data: st.DataObject, amount: int, gauge: int) -> None:
        """A worker counts."""
        pid = data.draw(st.sampled_from(sorted(self.workers)))
        self._count(pid, amount)
        self.workers[pid].set_gauge(gauge)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), version=VERSIONS)
    def swap(self, data: st.DataObject, version: str) -> None:
        """A worker takes the weights of another version."""
        self.workers[data.draw(st.sampled_from(sorted(self.workers)))].swap(version)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), is_used_again=st.booleans())
    def death(self, data: st.DataObject, is_used_again: bool) -> None:
        """A process is killed. Nobody cleans up after it, and its pid may be used again before anybody looks."""
        pid = data.draw(st.sampled_from(sorted(self.running)))
        self._end(pid)
        if is_used_again:
            self._start(pid)

    @rule(seconds=st.sampled_from([SHORT, LONG]))
    def pass_time(self, seconds: float) -> None:
        """Nothing happens for some time."""
        self.passed += seconds

    @invariant()
    def scrape(self) -> None:
        """Gauges are those of living workers; counters never decrease, and go away an hour after their last worker."""
        merge_ended(self.path)
        found: dict[str, dict[Labels, float]] = {"g": {}, "c_total": {}, "h_sum": {}}
        for metric in Collector(None, str(self.path)).collect():
            for sample in metric.samples:
                if sample.name in found:
                    found[sample.name][sample.labels["slot"], sample.labels["version"]] = sample.value
        gauges = Counter[Labels]()
        for one in self.workers.values():
            gauges[one.labels] += int(one.gauge)
        assert found["g"] == dict(gauges)
        assert found["c_total"].keys() == found["h_sum"].keys()
        self._check_counters(found["c_total"])
        assert found["h_sum"] == found["c_total"]
        left = {path.name for path in self.path.iterdir()} - {"counter_ended.db", "histogram_ended.db"}
        assert len(left) <= 3 * len(self.workers)

    def _check_counters(self, found: dict[Labels, float]) -> None:
        now = self.time()
        for one in self.workers.values():
            self.last |= dict.fromkeys(one.had, now)
        for labels, total in list(self.totals.items()):
            gone = now - self.last.setdefault(labels, now)
            if labels in found or gone < expiry.KEPT:
                assert found.get(labels) == total, labels
            else:
                del self.totals[labels]
            assert labels not in found or gone < 2 * LONG, labels
        assert found.keys() <= self.totals.keys()

    def teardown(self) -> None:
        for worker in self.workers.values():
            worker.end()
        self.patch.undo()
        self.scratch.cleanup()


TestSeries = Series.TestCase
TestSeries.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_sums_of_what_runs_do_not_expire() -> None:
    """Those of a killed worker stay while another one of its slot and version runs, or the counter would be reset."""
    host = Series()
    try:
        for pid in (101, 102):
            host._start_worker(pid, "blue", "1.0.0")
            host._count(pid, 2)
        host._end(101)
        for _ in range(3):
            host.scrape()
            host.pass_time(LONG)
        host.scrape()
        assert host.totals == {("blue", "1.0.0"): 4}
    finally:
        host.teardown()


def test_sums_outlive_a_worker_that_counted_nothing() -> None:
    """They are kept for an hour after the last worker, also if only those before it have counted."""
    host = Series()
    try:
        host._start_worker(101, "blue", "1.0.0")
        host._count(101, 2)
        host._end(101)
        host.scrape()
        host._start_worker(101, "blue", "1.0.0")
        host.pass_time(LONG)
        host.scrape()
        host._end(101)
        host.scrape()
        assert host.totals == {("blue", "1.0.0"): 2}
    finally:
        host.teardown()
