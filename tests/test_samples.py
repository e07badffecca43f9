"""The samples of a version are those of answers that it gave, also when a worker's weights were replaced."""

from __future__ import annotations

import asyncio
import json
import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploy.analysis.samples import Samples
from deploy.host import Host
from service.contract.samples import Origin, Sample, SampleRing, new_samples
from service.contract.worker_state import WorkerState
from service.timing import Message, ResponseTimer

VERSIONS = ("1.0.0", "1.1.0", "1.1.0-rc.1")
CAPACITY = 8192

answers = st.integers(0, 40)  # of one worker
swaps = st.sampled_from(VERSIONS)
looks = st.none()  # all readers read


@settings(deadline=None, derandomize=True, max_examples=60)
@given(events=st.lists(st.one_of(answers, swaps, looks), max_size=20))
@example(events=[30, "1.1.0", None])
@example(events=[CAPACITY + 10, "1.1.0", 20, None, CAPACITY + 1, None])
def test_samples_are_those_of_their_version(events: list[int | str | None]) -> None:
    """A reader gets the answers of its version since the last swap, each once, and never one of another version."""
    with tempfile.TemporaryDirectory() as directory:
        host = Host(True, *(Path(directory),) * 5)
        generation = host.runtime / "blue/1"
        generation.mkdir(parents=True)
        state = WorkerState.of_this_process(slot="blue", generation=1, version=VERSIONS[0])
        ring = SampleRing(generation / "1.samples", state)
        readers = {version: Samples(host, "blue", version) for version in VERSIONS}
        version_of: dict[float, str] = {}
        read: list[float] = []
        unread: list[float] = []  # of the present version, since the last swap
        for event in events:
            if isinstance(event, int):
                for _ in range(event):
                    at = float(len(version_of))
                    ring.add(Sample(at, 0.1, None, 200))
                    version_of[at] = state.version
                    unread.append(at)
            elif isinstance(event, str):
                if event != state.version:
                    state.set_version(event)
                    unread = []
            else:
                record = {"generation": 1, "slot": "blue", "version": state.version, "release": "", "master": 1}
                (generation / "generation.json").write_text(json.dumps(record))
                for version, reader in readers.items():
                    found = [sample.at for sample in reader.new()]
                    assert {version_of[at] for at in found} <= {version}
                    assert version != state.version or set(unread[-CAPACITY:]) <= set(found)
                    read += found
                unread = []
    assert len(read) == len(set(read))


@given(
    at=st.floats(0, 1e9),
    status=st.integers(100, 599),
    kind=st.integers(0, 4),
    origin=st.builds(Origin, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.booleans()),
)
def test_a_sample_is_read_as_it_was_written(at: float, status: int, kind: int, origin: Origin) -> None:
    """Every field; those of the format before this one, which releases with an older environment write, too."""
    with tempfile.TemporaryDirectory() as directory:
        state = WorkerState.of_this_process(slot="blue", generation=1, version="1.0.0")
        ring = SampleRing(Path(directory) / "1.samples", state)
        sample = Sample(at, 0.5, 0.25, status, kind, 2.0, origin)
        ring.add(sample)
        assert new_samples(Path(directory) / "1.samples", "1.0.0") == ([sample], 1)
        old = Path(directory) / "2.samples"
        header = struct.pack("<8sQQ256s", b"glmring2", 1, 0, b"1.0.0")
        old.write_bytes(header + struct.pack("<dffHHf", at, 0.5, 0.25, status, kind, 2.0) + bytes(24 * (CAPACITY - 1)))
        assert new_samples(old, "1.0.0") == ([replace(sample, origin=Origin())], 1)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/completions", "/healthz"])
def test_answers_of_every_format_judge_a_version(tmp_path: Path, path: str) -> None:
    """Requests that the model does not answer do not."""
    state = WorkerState.of_this_process(slot="blue", generation=1, version="1.0.0")
    ring = SampleRing(tmp_path / "1.samples", state)

    async def answer() -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(_message: Message) -> None:
            pass

        timer = ResponseTimer({"path": path}, receive, send)
        await timer.receive()
        await timer.send({"type": "http.response.start", "status": 200, "headers": []})
        await timer.send({"type": "http.response.body", "body": b"x"})
        timer.complete = True
        timer.end(client_gone=False)
        timer.write(ring, Origin())

    asyncio.run(answer())
    [found] = new_samples(tmp_path / "1.samples", "1.0.0")[0]
    assert found.is_answer is path.startswith("/v1/")


def test_a_damaged_ring_has_no_samples(tmp_path: Path) -> None:
    """A file that is missing, short, of another format or of another version is read as empty."""
    path = tmp_path / "1.samples"
    assert new_samples(path, "1.0.0", 3) == ([], 3)
    for content in (b"", b"glmring2", b"glmring1" + bytes(400), bytes(400)):
        path.write_bytes(content)
        assert new_samples(path, "1.0.0") == ([], 0)
