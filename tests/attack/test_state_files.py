"""Garbage in any file that the programs share: readers treat it as absent, nothing crashes, and doctor names it."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploy.analysis.recent import RecentStats
from deploy.cli import glmctl
from deploy.commands.options import Options
from deploy.display import Display
from deploy.errors import Refused
from deploy.host import Host
from deploy.journal import locks
from deploy.journal.journal import Journal
from deploy.journal.receipt import Receipt, dump, snapshot
from deploy.journal.record import Record, Step
from deploy.policy import Policy
from deploy.reports import files
from deploy.rollout.plan import Context
from service.contract import damage, generations, processes, regular_file
from service.contract.canary_file import Canary, CanaryFile
from service.contract.generations import Generation
from service.contract.samples import Sample, SampleRing, new_samples
from service.contract.slots import Slots
from service.contract.successor import Successor
from service.contract.weights_order import WeightsOrderFile, own_order
from service.contract.worker_state import WorkerState, WorkerStateFile
from service.routing.ownership import Gate
from tests.attack.garbage import BAD_VALUES, CONTENTS, KINDS, contents, plant
from tests.box import Box, wait_for

PROFILE = settings(deadline=None, derandomize=True, max_examples=60)
TIME = "2026-01-01T00:00:00.000+00:00"

CANARY = asdict(Canary("green", 10.0, 1, sticky="authorization", mirror=5.0))
ORDER = asdict(own_order(id="1", before="1.0.0", after="1.1.0", workers=(1,), seconds=5.0))
SUCCESSOR: dict[str, Any] = {"python": "/usr/bin/python3", "settings": {"GLM_WORKERS": "2"}}
WORKER = json.loads(json.dumps(asdict(WorkerState.of_this_process(slot="blue", generation=1, version="1.0.0"))))
GENERATION: dict[str, Any] = {
    "generation": 1,
    "slot": "blue",
    "version": "1.0.0",
    "release": "/x",
    "master": os.getpid(),
    "start_ticks": processes.own_start_ticks(),
    "ready": True,
}
RECORD = Record(
    id="20260101-000000-01", kind="deploy", version="1.1.0", slot="green", previous="1.0.0", previous_slot="blue",
    started_at=TIME, steps=[Step(phase="preflight", at=TIME), Step(phase="bake", at=TIME)], bake=5.0, receipt=Receipt(),
).model_dump()  # fmt: skip


@contextmanager
def new_host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        host = Host(True, place / "root", place / "run", place / "state", place / "units", place / "etc/glm.env")
        for path in (host.root, host.runtime / "blue/1", host.runtime / "green", host.state / "history"):
            path.mkdir(parents=True)
        (place / "etc").mkdir()
        (host.root / "live").symlink_to("blue")
        yield host


def the_gate(host: Host) -> Gate:
    return Gate(host.root, host.runtime, (0, 0), max_age=0.0)


def use_canary(host: Host) -> None:
    """All that a worker and glmctl do with the file."""
    gate = the_gate(host)
    for _ in range(2):
        look = gate.look()
        assert set(look.owners) == {"live", "candidate"}
        gate.pick_side()
        gate.side_by_head(b"GET / HTTP/1.1\r\nAuthorization: me\r\n\r\n")
        gate.pick_mirrored()
        assert look.canary is None or (0 <= look.canary.weight <= 100 and 0 <= look.canary.mirror <= 100)
    assert "canary" in json.dumps({"canary": asdict(look.canary) if look.canary else None}, allow_nan=False)


def use_order(host: Host) -> None:
    file = WeightsOrderFile(host.root, "blue", host.runtime / "blue/1")
    version = file.version("1.0.0")
    with suppress(OSError):
        (host.root / "releases" / version).resolve(strict=True)
    assert "/" not in version


def use_generations(host: Host) -> None:
    """What status, receipts and rollouts compute from the state files."""
    for one in generations.all_generations(host.runtime):
        shown = [one.gate, one.in_flight, one.connections, one.error, one.load, one.load_progress, one.is_serving]
        json.dumps(shown, allow_nan=False).encode()
        assert "\x1b" not in f"{shown}{one.version}"
    dump(snapshot(host)).encode()
    generations.current(host.runtime, "blue")


def use_successor(host: Host) -> None:
    environment: dict[str, str] = {"PATH": "/bin"}
    command = Successor.read(host.runtime / "blue/1").enter(environment)
    for text in (*command, *environment, *environment.values()):
        assert "\0" not in os.fsencode(text).decode(errors="replace")
    assert environment["PATH"] == "/bin"


def use_samples(host: Host) -> None:
    samples, _ = new_samples(host.runtime / "blue/1/5.samples", "1.0.0")
    assert len(samples) <= 8192
    stats = RecentStats(host, "blue", "1.0.0")
    stats.update()
    json.dumps([stats.requests_per_s, stats.p95, stats.ttft_p95, stats.per_second(30)], allow_nan=False)


def use_journal(host: Host) -> None:
    """All that reading verbs do with the records."""
    journal = Journal(host)
    journal.interrupted()
    journal.last_load()
    journal.read_snapshot(RECORD["id"])
    run(host, "history")
    for record in journal.records():
        assert record.id == RECORD["id"]
        run(host, "history", record.id)


def use_policy(host: Host) -> None:
    host.setting("HANDOFF")
    with suppress(Refused):
        Policy.of(host)


def run(host: Host, *words: str) -> None:
    options = Options()
    options.__class__ = type("OptionsOf", (Options,), {"host": property(lambda _: host)})
    for more in ([], ["--json"]):
        result = CliRunner().invoke(glmctl, [*words, *more], obj=options)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        result.output.encode()


MAY_BE_GOOD = {
    "settings": {*CONTENTS, "dangling link"},
    "policy": {"empty", "dangling link"},
    "lock": {*CONTENTS, "huge file"},
    "switch": {*CONTENTS, "huge file"},
}
PLACES: dict[str, tuple[str, dict[str, Any], Callable[[Host], None]]] = {
    "canary": ("run/canary", CANARY, use_canary),
    "weights order": ("run/blue/1/weights_order.json", ORDER, use_order),
    "successor": ("run/blue/1/successor.json", SUCCESSOR, use_successor),
    "generation": ("run/blue/1/generation.json", GENERATION, use_generations),
    "worker state": (f"run/blue/1/{os.getpid()}.json", WORKER, use_generations),
    "samples": ("run/blue/1/5.samples", {"a": 1}, use_samples),
    "record": (f"state/history/{RECORD['id']}.json", RECORD, use_journal),
    "snapshot": (f"state/history/{RECORD['id']}.before", {"boot": processes.boot_id(), "counts": []}, use_journal),
    "policy": ("etc/glm.toml", {"hooks": {}}, use_policy),
    "settings": ("etc/glm.env", {"GLM_HANDOFF": 1}, use_policy),
}
USES = {"lock": ("state/lock", use_journal), "switch": ("state/switch", use_journal)} | {
    name: (path, use) for name, (path, _, use) in PLACES.items()
}


def prepare(host: Host, path: Path) -> None:
    """Write the files beside the one that is damaged, so that it is reached."""
    if path.name != "generation.json":
        (host.runtime / "blue/1/generation.json").write_text(json.dumps(GENERATION))
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", PLACES)
def test_any_content(name: str) -> None:
    """Whatever a file holds, its readers neither raise nor return a value that cannot be used."""
    relative, good, use = PLACES[name]

    @PROFILE
    @given(content=contents(good))
    @example(content=json.dumps(good).encode())
    def check(content: bytes) -> None:
        with new_host() as host:
            path = host.root.parent / relative
            prepare(host, path)
            path.write_bytes(content)
            use(host)

    check()


@pytest.mark.parametrize("name", [name for name, (path, *_) in PLACES.items() if path.endswith(("json", "canary"))])
def test_any_value_of_any_field(name: str) -> None:
    """Each field with each bad value, one at a time: the rest of the document is good."""
    relative, good, use = PLACES[name]
    with new_host() as host:
        path = host.root.parent / relative
        prepare(host, path)
        for field in good:
            for value in BAD_VALUES:
                path.write_text(json.dumps(good | {field: value}))
                use(host)


@pytest.mark.parametrize("what", [*KINDS, *CONTENTS])
@pytest.mark.parametrize("name", USES)
def test_anything_in_place_of_a_file(name: str, what: str) -> None:
    """No reader follows a link, blocks, or reads without a bound; doctor names the file and a cure that works."""
    relative, use = USES[name]
    with new_host() as host:
        path = host.root.parent / relative
        prepare(host, path)
        plant(path, what)
        began = time.monotonic()
        use(host)
        assert time.monotonic() - began < 5
        findings = [one for one in files.examine(Context(host, Display())) if not one.good]
        if what not in MAY_BE_GOOD.get(name, ()):
            assert any(str(path) in one.what for one in findings), findings
        for one in findings:
            assert one.fix, one
            if one.fix.startswith(("rm ", "mv ")):
                subprocess.run(one.fix, shell=True, check=True)
        left = [one for one in files.examine(Context(host, Display())) if not one.good]
        assert left == [] or name in {"policy", "settings"}


@given(
    count=st.integers(0, 2**64 - 1),
    first=st.integers(0, 2**64 - 1),
    size=st.sampled_from([0, 24, 8191 * 24, 8192 * 24]),
    record=st.binary(min_size=24, max_size=24),
    magic=st.sampled_from([b"glmring2", b"glmring1", bytes(8)]),
)
@example(count=1, first=0, size=0, record=bytes(24), magic=b"glmring2")
@example(
    count=5,
    first=0,
    size=8192 * 24,
    record=struct.pack("<dffHHf", float("nan"), 1e30, -1, 200, 1, 0),
    magic=b"glmring2",
)
@PROFILE
def test_any_ring_of_samples(count: int, first: int, size: int, record: bytes, magic: bytes) -> None:
    """A ring with any counts, times and sizes gives at most 8192 samples, whose times can be computed with."""
    with new_host() as host:
        header = struct.pack("<8sQQ256s", magic, count, first, b"1.0.0")
        (host.runtime / "blue/1/5.samples").write_bytes(header + record * (size // 24))
        use_samples(host)
        list(damage.damaged(host.root, host.runtime))


def test_good_files_are_read(caplog: pytest.LogCaptureFixture) -> None:
    """What the programs write themselves is never reported."""
    with new_host() as host:
        state = WorkerState.of_this_process(slot="blue", generation=1, version="1.0.0")
        WorkerStateFile(host.runtime / f"blue/1/{os.getpid()}.json", state).publish()
        ring = SampleRing(host.runtime / "blue/1/5.samples", state)
        SampleRing(host.runtime / "blue/1/6.samples", state)
        for number in range(9000):
            ring.add(Sample(float(number), 0.1, None, 200))
        CanaryFile(host.runtime).write(Canary(**CANARY))
        Generation(**GENERATION).write(host.runtime / "blue/1")
        Successor(**SUCCESSOR).write(host.runtime / "blue/1")
        file = WeightsOrderFile(host.root, "blue", host.runtime / "blue/1")
        file.write(own_order(id="1", before="1", after="2", workers=(1,), seconds=1.0))
        journal = Journal(host)
        journal.write(Record.model_validate(RECORD))
        journal.write_snapshot(RECORD["id"], {})
        with journal.lock(), journal.switching():
            assert list(damage.damaged(host.root, host.runtime)) == []
            assert list(journal.damaged()) == []
        assert [one.good for one in files.examine(Context(host, Display()))] == [True]
        assert CanaryFile(host.runtime).read() == Canary(**CANARY)
        assert len(new_samples(host.runtime / "blue/1/5.samples", "1.0.0")[0]) == 8192
    assert not caplog.records


@pytest.mark.parametrize("what", ["directory", "FIFO", "huge file", "loop", "socket"])
def test_the_cure_of_live(what: str) -> None:
    """Anything in place of `live` means that no slot is live; doctor restores the slot of the last rollout."""
    with new_host() as host:
        journal = Journal(host)
        done = Record.model_validate(RECORD | {"outcome": "done"})
        journal.write(done)
        (host.root / "live").unlink()
        plant(host.root / "live", what)
        assert Slots(host.root).live is None
        gate = the_gate(host)
        assert not gate.is_open()
        assert gate.owner() is None
        finding = next(one for one in files.examine(Context(host, Display())) if not one.good)
        assert str(host.root / "live") in finding.what
        assert finding.fix
        subprocess.run(finding.fix, shell=True, check=True)
        assert Slots(host.root).live == "green"


def test_a_canary_that_cannot_be_read_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A worker looks every millisecond; a file that it cannot read is tried again, and reported once."""
    with new_host() as host:
        gate = the_gate(host)
        plant(host.runtime / "canary", "FIFO")
        for _ in range(20):
            assert gate.look().canary is None
        assert len(caplog.records) == 1
        CanaryFile(host.runtime).write(Canary("green", 10.0))
        assert gate.look().canary == Canary("green", 10.0)


@pytest.mark.parametrize("what", KINDS)
def test_the_bounded_reader(tmp_path: Path, what: str) -> None:
    """The one function that reads shared files refuses whatever is not a regular file of bounded size."""
    plant(tmp_path / "x", what)
    with pytest.raises(OSError):
        regular_file.read(tmp_path / "x")
    if what in {"FIFO", "directory", "loop"}:
        with pytest.raises(OSError):
            locks.check(tmp_path / "x")


def test_a_live_host_beside_garbage(stocked_live: Box) -> None:
    """Workers go on whatever lies in place of the canary, doctor names it, and a damaged record is written again."""
    box = stocked_live
    before = [worker.pid for worker in box.generation("blue").alive_workers]
    canary = box.host.runtime / "canary"
    for what in (*KINDS, "list", "null", "half", "NaN", "nested"):
        plant(canary, what)
        for _ in range(5):
            answer = box.get("/version")
            assert (answer.status_code, answer.headers["x-slot"]) == (200, "blue")
        box.glmctl("status")
        if what != "dangling link":
            finding = next(one for one in box.json("doctor", expect=1)["findings"] if not one["good"])
            assert finding["what"].startswith(f"{canary} is ignored: ")
        subprocess.run(["rm", "-rf", canary], check=True)
    record = box.host.runtime / "blue/1/generation.json"
    for what in ("list", "FIFO", "loop"):
        record.unlink()
        plant(record, what)
        wait_for(lambda: generations.current(box.host.runtime, "blue"), 10)
    assert [worker.pid for worker in box.generation("blue").alive_workers] == before
    assert all(one["good"] for one in box.json("doctor")["findings"] if str(box.host.runtime) in one["what"])
