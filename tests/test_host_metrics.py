"""What a scrape shows of the host: slots, generations, rollouts, disks and GPUs; and nothing of what is gone."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from deploy.errors import Unrecorded
from deploy.host import Host
from deploy.journal.journal import Journal, begin
from service.contract import rollout_report
from service.contract.canary_file import Canary, CanaryFile
from service.contract.rollout_report import RolloutReport, RunningRollout
from service.contract.slots import SLOTS, Slots
from service.host_metrics import HostCollector
from service.host_metrics.gpus import GpuReader
from service.settings import Settings
from tests.fake_nvml import pynvml
from tests.host_files import DEAD, ROLLOUT, new_host


@pytest.fixture
def root(tmp_path: Path) -> Path:
    new_host(tmp_path)
    return tmp_path


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with two GPUs, on the first of which this process, a worker of both slots, has 3 bytes."""
    process = type("Process", (), {"pid": os.getpid(), "usedGpuMemory": 3})
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    monkeypatch.setenv("FAKE_GPUS", "2")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: [] if handle else [process])


def samples(root: Path, reader: GpuReader | None = None) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the values of a scrape by name, and by the values of their labels in the order of their names."""
    registry = CollectorRegistry()
    registry.register(HostCollector(Settings(slot="blue", root=root, runtime=root, state=root / "batches"), reader))
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in registry.collect():
        for one in family.samples:
            labels = tuple(value for _, value in sorted(one.labels.items()))
            found.setdefault(one.name, {})[labels] = one.value
    return found


def test_slots_and_generations_are_those_that_run(root: Path) -> None:
    """Both slots always have their series; a generation and its workers only while a process of it lives."""
    found = samples(root)
    assert found["glm_slot_live"] == {("blue",): 1, ("green",): 0}
    assert found["glm_slot_share_ratio"] == {("blue",): 0.75, ("green",): 0.25}
    assert found["glm_slot_gate_open"] == {("blue",): 1, ("green",): 0}
    assert found["glm_release_info"] == {("2", "blue", "1.0.0"): 1, ("1", "green", "1.1.0"): 1}
    assert found["glm_generation_workers"] == {("2", "ready", "blue"): 1, ("1", "leaving", "green"): 1}
    assert len(found["glm_build_info"]) == 1
    assert found["glm_disk_free_bytes"].keys() == found["glm_disk_size_bytes"].keys() == {("releases",), ("state",)}


def test_without_a_live_slot_none_is_shown_as_live(root: Path) -> None:
    """An alert sums the series, which therefore exist."""
    Slots(root).go_live(None)
    found = samples(root)
    assert found["glm_slot_live"] == found["glm_slot_share_ratio"] == {("blue",): 0, ("green",): 0}


@settings(max_examples=15, deadline=None)
@given(live=st.sampled_from(SLOTS), canary=st.none() | st.tuples(st.sampled_from(SLOTS), st.floats(0, 100)))
def test_shares_add_up_to_one(
    tmp_path_factory: pytest.TempPathFactory, live: str, canary: tuple[str, float] | None
) -> None:
    """Whichever slot is live, and whichever canary was left behind."""
    root = tmp_path_factory.mktemp("shares")
    Slots(root).go_live(live)
    if canary:
        CanaryFile(root).write(Canary(*canary))
    assert sum(samples(root)["glm_slot_share_ratio"].values()) == pytest.approx(1)


def test_a_rollout_is_shown_while_it_runs(root: Path) -> None:
    """Its phase, and when that began; what ended is counted, and an interrupted one does not run."""
    found = samples(root)
    assert found["glm_rollout_running"] == {(ROLLOUT.id, "deploy", "canary", "green", "overlap", "1.1.0"): 1}
    assert found["glm_rollout_phase_timestamp_seconds"] == {(ROLLOUT.id, "canary"): 1000}
    assert found["glm_rollout_interrupted"] == {(): 0}
    assert found["glm_rollouts_total"] == {("deploy", "done"): 1}
    path = rollout_report.path(root)
    path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {DEAD}'))
    found = samples(root)
    assert "glm_rollout_running" not in found
    assert found["glm_rollout_interrupted"] == {(): 1}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, "done", "rolled back"])), max_size=20))
def test_each_end_is_counted_once(writes: list[tuple[str, str | None]]) -> None:
    """However often a rollout's state is written, also by the process that ends it in place of a dead one."""
    report, ends = RolloutReport(), 0
    states: dict[str, str | None] = {}
    for number, outcome in writes:
        was_open = states.get(number) is None
        if number in states and not was_open:
            continue  # a rollout that has ended is not written again
        ends += outcome is not None
        states[number] = outcome
        rollout = RunningRollout(number, "deploy", "overlap", "1", "blue", "bake", 1.0, outcome)
        for _ in range(2):
            report = report.with_rollout(rollout)
        assert {one.id for one in report.rollouts if one.outcome is None} == {n for n, end in states.items() if not end}
    assert sum(one.count for one in report.ended) == ends
    assert len([one for one in report.rollouts if one.outcome is not None]) <= 1


def test_the_journal_reports_each_phase_and_the_end(tmp_path: Path) -> None:
    """The report says what the journal says; that it cannot be written stops nothing."""
    runtime = tmp_path / "run"
    host = Host(True, tmp_path, runtime, tmp_path / "state", tmp_path, tmp_path)
    journal = Journal(host)
    entry = begin(journal, "rollback", "1.0.0", "blue")
    with journal.lock():
        entry.enter("preflight")  # without the directory there is no report
        runtime.mkdir()
        for phase in ("preflight", "cutover"):
            entry.enter(phase)
            [shown] = rollout_report.read(runtime).rollouts
            assert (shown.id, shown.kind, shown.phase) == (entry.record.id, "rollback", phase)
            assert shown.is_running
        entry.end("done")
        refused = begin(journal, "deploy", "1.1.0", "green")
        (tmp_path / "state/history").rename(tmp_path / "state/full")
        with pytest.raises(Unrecorded):
            refused.enter("preflight")
    report = rollout_report.read(runtime)
    assert [one.id for one in report.rollouts] == [entry.record.id]
    assert [(one.kind, one.outcome, one.count) for one in report.ended] == [("rollback", "done", 1)]


def test_a_damaged_report_is_no_report(root: Path) -> None:
    """Counting begins anew with the next rollout, as after a reboot."""
    rollout_report.path(root).write_text(json.dumps({"rollouts": [{"id": 3}]}))
    assert "glm_rollouts_total" not in samples(root)
    rollout_report.write(root, ROLLOUT)
    assert len(samples(root)["glm_rollout_running"]) == 1


@pytest.mark.usefixtures("gpus")
def test_gpus_are_shown_as_nvml_tells(root: Path) -> None:
    """A figure that a GPU does not tell is absent; memory by slot is that of its workers."""
    found = samples(root)
    assert found["glm_gpu_utilization_ratio"] == {("cuda:0",): 0.25, ("cuda:1",): 0.5}
    assert found["glm_gpu_memory_size_bytes"][("cuda:0",)] - found["glm_gpu_memory_used_bytes"][("cuda:0",)] == 1 << 30
    assert found["glm_gpu_temperature_celsius"] == {("cuda:0",): 40, ("cuda:1",): 41}
    assert found["glm_gpu_power_watts"] == {("cuda:0",): 70.5}
    assert found["glm_gpu_slot_memory_bytes"] == {("cuda:0", "green"): 3}


def test_without_nvml_there_are_no_gpus(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is not asked again."""
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    reader = GpuReader()
    for _ in range(2):
        assert not [name for name in samples(root, reader) if "gpu" in name]
        monkeypatch.setenv("FAKE_GPUS", "1")


@pytest.mark.usefixtures("gpus")
def test_a_driver_that_hangs_takes_no_scrape_with_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scrapes go on without the GPUs, and with one waiting thread, until the driver answers."""
    answers = threading.Event()
    asked: list[int] = []

    def count() -> int:
        asked.append(1)
        answers.wait()
        return 2

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", count)
    reader = GpuReader(wait=0.01)
    for _ in range(3):
        found = samples(root, reader)
        assert "glm_gpu_power_watts" not in found
        assert "glm_slot_live" in found
    assert len(asked) == 1
    answers.set()
    assert reader._thread
    reader._thread.join(5)
    assert "glm_gpu_power_watts" in samples(root, GpuReader())


def test_a_part_that_fails_is_left_out(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are shown, and the reason is logged once."""

    def fail(_runtime: Path) -> RolloutReport:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(rollout_report, "read", fail)
    collector = HostCollector(Settings(slot="blue", root=root, runtime=root, state=root / "batches"))
    for _ in range(2):
        names = {family.name for family in collector.collect()}
        assert "glm_slot_live" in names
        assert "glm_rollouts" not in names
    assert [record.getMessage() for record in caplog.records] == [
        "the metrics of the rollouts cannot be read, and are left out"
    ]
