"""Target: the files that the controller and the servers share, with any content."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path

from service.contract import damage, generations, samples
from service.contract.canary_file import Canary, CanaryFile
from service.contract.generations import Generation
from service.contract.successor import Successor
from service.contract.weights_order import WeightsOrder, WeightsOrderFile
from service.contract.worker_state import PastVersion, SwapReport, WorkerState
from service.model.release import Release, ReleaseError
from tests.fuzz.mutation import mutate
from tests.fuzz.target import Run, Target

__all__ = ["STATE_FILES"]


@contextmanager
def _start(directory: Path) -> Iterator[Run]:
    """A host whose every shared file has the input as its content."""
    root, runtime, release = directory / "root", directory / "run", directory / "root/releases/1"
    own = runtime / "blue/1"
    own.mkdir(parents=True)
    release.mkdir(parents=True)
    paths = [
        runtime / "canary",
        runtime / "rollback",
        release / "release.json",
        *(own / name for name in ("generation.json", "successor.json", "weights_order.json", "1.json", "1.samples")),
    ]

    def read(data: bytes) -> None:
        for path in paths:
            path.unlink(missing_ok=True)
            path.write_bytes(data)
        canary = CanaryFile(runtime).read()
        assert canary is None or 0 <= canary.weight <= 100
        Generation.read_record(own)
        Generation.read(own)
        list(generations.all_generations(runtime))
        generations.current(runtime, "blue")
        WorkerState.read(own / "1.json")
        for version in ("", "1.0.0"):
            samples.new_samples(own / "1.samples", version)
        WeightsOrderFile(root, "blue", own).read()
        Successor.read(own)
        with suppress(ReleaseError):
            Release.read(release)
        for found in damage.damaged(root, runtime):
            assert len(found.reason) < 2000, found

    yield read


@cache
def _seeds() -> tuple[bytes, ...]:
    state = WorkerState.of_this_process(slot="blue", generation=1, version="1.0.0")
    state.past = [PastVersion("0.9.0", state.ledger)]
    state.swap = SwapReport("20261123-083203-01", "prepared")
    documents = [
        asdict(Canary(slot="green", weight=10, step=1, sticky="authorization", mirror=10)),
        asdict(WeightsOrder("20261123-083203-01", "verify", "1.0.0", "1.1.0", (1, 2), 3, 4, 60.0)),
        asdict(Generation(1, "blue", "1.0.0", "/srv/glm/releases/1.0.0", 1, 2)),
        asdict(Successor("/usr/bin/python3", {"GLM_SLOT": "blue"})),
        state.document(),
        {"version": "1.0.0", "engine": {"rows": 64}, "checks": [{"question": "a", "answer": "b"}], "files": []},
    ]
    ring = struct.pack("<8sQQ256s", b"glmring2", 3, 1, b"1.0.0") + struct.pack("<dffHHf", 1, 2, 3, 200, 1, 0) * 8192
    return ring, b"20261123-083203-01", *(json.dumps(document).encode() for document in documents)


def _generate(random: random.Random, max_size: int) -> bytes:
    """Return a changed file; the ring of samples, which has one size alone, keeps that half of the time."""
    ring = _seeds()[0]
    data = mutate(random, _seeds(), max(max_size, len(ring)))
    if data[:8] == ring[:8] and random.random() < 0.5:
        data = (data + ring[len(data) :])[: len(ring)]
    return data


# The file is read by a dozen readers: 1 MiB of JSON took them 0.68 s on a machine whose cores had other work.
STATE_FILES = Target("state_files", _start, _generate, seconds=1.5, mebibytes=64)
