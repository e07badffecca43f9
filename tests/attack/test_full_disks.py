"""Full file systems: the service goes on, and the operator can look, delete and go back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from service.contract.samples import Sample, SampleRing, check
from service.contract.worker_state import WorkerState
from tests.attack.garbage import CONTENTS, KINDS

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")


@contextmanager
def small_disk(place: Path, size: str = "1m") -> Iterator[Path]:
    """Mount a file system of that size."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Use all the room of a file system, to the last byte."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        for piece in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while file.write(bytes(piece)) == piece:
                    pass
    status = os.statvfs(disk)
    assert status.f_bavail == 0
    return filler


PROGRAM = """
import logging, os, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from service import metrics
fill = sys.argv[1] == "growing"
for number in range(1500):
    one = metrics.Metrics(f"1.0.{number}", "blue")
    one.set_in_flight(1); one.observe_first_token(0.1); one.count_tokens(3)
    metrics.count_request(f"1.0.{number}", "blue", "/x", "200", 0.1); metrics.flush()
    if fill and number == 3:
        fill = False
        with open(os.environ["PROMETHEUS_MULTIPROC_DIR"] + "/filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)) == 4096: pass
            except OSError: pass
print(len(metrics.render()) > 1000, flush=True)
"""


@needs_root
@pytest.mark.parametrize("when", ["at start", "growing"])
def test_metrics_on_a_full_disk(tmp_path: Path, when: str) -> None:
    """No SIGBUS: the process goes on without shared metrics and says so once, however many it has; scrapes work."""
    with small_disk(tmp_path / "run") as run:
        if when == "at start":
            fill(run)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, when],
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(run)}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, (done.returncode, done.stderr)
        assert done.stdout.count("this process is not measured") == 1
        assert done.stdout.endswith(f"{when == 'growing'}\n")
        assert not any(path.stat().st_size == 0 for path in run.glob("*.db"))


@pytest.mark.parametrize("what", [*KINDS, *CONTENTS])
def test_metrics_beside_garbage(tmp_path: Path, what: str) -> None:
    """Anything in the directory of the metrics hinders neither a process nor a scrape."""
    program = (
        f"import os, pathlib, shutil\nplace = {str(tmp_path)!r}\n"
        + """
from tests.attack.garbage import plant
from pathlib import Path
import sys
for kind in ("counter", "gauge_livesum", "histogram"):
    plant(Path(place) / f"{kind}_{os.getpid()}.db", sys.argv[1])
    plant(Path(place) / f"{kind}_1.db", sys.argv[1])
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 27, 1 << 27))  # whatever is tried, the disk of this machine stays free
from service import metrics
one = metrics.Metrics("1", "blue")
one.set_in_flight(1); one.observe_first_token(0.1); one.count_tokens(3)
metrics.render()
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", program, what],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr)


@needs_root
def test_samples_on_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A worker whose ring cannot be allocated lives without it, and leaves no empty file that doctor would report."""
    with small_disk(tmp_path / "run") as run:
        filler = fill(run)
        state = WorkerState.of_this_process(slot="blue", generation=1, version="1.0.0")
        ring = SampleRing(run / "1.samples", state)
        for number in range(10_000):
            ring.add(Sample(float(number), 0.1, None, 200))
        assert not (run / "1.samples").exists()
        assert len(caplog.records) == 1
        filler.unlink()
        SampleRing(run / "2.samples", state).add(Sample(1.0, 0.1, None, 200))
        check(run / "2.samples")
