"""When a worker counts as frozen: for its own silence, not for a pause of the process that watches, or a full disk."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deploy.host import Host
from deploy.rollout import liveness
from deploy.rollout.liveness import SILENCE, Heartbeats
from service.contract import atomic
from service.contract.generations import Generation
from service.contract.processes import own_start_ticks
from service.contract.worker_state import WorkerState, WorkerStateFile


class Clock:
    """A scripted clock."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def worker(runtime: Path, phase: str = "ready") -> WorkerStateFile:
    """The state file of this process, as a worker of green."""
    directory = runtime / "green/1"
    directory.mkdir(parents=True)
    ticks = own_start_ticks()
    Generation(1, "green", "1.1.0", "", os.getpid(), ticks, ready=True).write(directory)
    state = WorkerState.of_this_process(slot="green", generation=1, version="1.1.0")
    state.phase = phase  # type: ignore[assignment]
    return WorkerStateFile(directory / f"{os.getpid()}.json", state)


looks = st.tuples(st.sampled_from([0.01, 0.05, 0.2, 0.25, 1.0, 30.0]), st.booleans())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(looks, max_size=30))
@example(events=[(30.0, False)])  # the watching process was suspended
@example(events=[(0.25, False)] * 7)
@example(events=[(0.2, True)] * 10 + [(0.05, False)] * 36)
def test_silence_is_what_the_watching_process_has_seen(
    monkeypatch: pytest.MonkeyPatch, events: list[tuple[float, bool]]
) -> None:
    """A worker is silent after 1.75 s without a write, of which no more than 0.25 s passed between two looks."""
    clock = Clock()
    monkeypatch.setattr(liveness, "time", clock)
    with tempfile.TemporaryDirectory() as path:
        host = Host(True, *(Path(path),) * 5)
        file = worker(host.runtime)
        file.publish()
        heartbeats = Heartbeats(host, "green")
        assert heartbeats.silent() == []
        written, silence = 1, 0.0
        for seconds, writes in events:
            clock.now += seconds
            silence += min(seconds, 0.25)
            if writes:
                written += 1
                os.utime(file.path, ns=(written, written))
                silence = 0.0
            found = heartbeats.silent()
            if abs(silence - SILENCE) > 1e-6:
                assert bool(found) is (silence > SILENCE)


@pytest.mark.parametrize("phase", ["loading", "checking", "failed", "gone"])
def test_a_worker_that_does_not_serve_is_not_frozen(tmp_path: Path, phase: str) -> None:
    """How long a load may take is the business of the unit's start time-out."""
    host = Host(True, *(tmp_path,) * 5)
    worker(host.runtime, phase).publish()
    heartbeats = Heartbeats(host, "green")
    for _ in range(12):
        heartbeats._clock.seconds += 0.25
        assert heartbeats.silent() == []


def test_a_full_disk_is_not_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that cannot write its state file still changes the modification time of the old one."""
    file = worker(tmp_path)
    file.publish()
    old = file.path.stat().st_mtime_ns, json.loads(file.path.read_text())["in_flight"]

    def write_text(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "write_text", write_text)
    time.sleep(0.02)
    file.state.in_flight += 1
    file.publish()
    assert file.path.stat().st_mtime_ns > old[0]
    assert json.loads(file.path.read_text())["in_flight"] == old[1]
