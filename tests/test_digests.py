"""Digests: compared once for files that do not change, beside the load, and before anything is given up."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from deploy.errors import GlmError, NotReady, Refused
from deploy.journal.journal import Journal
from deploy.journal.record import Phase, Record, Strategy
from deploy.releases import digests, stamps
from deploy.releases.release import Release
from deploy.releases.stamps import Stamps, states
from deploy.releases.store import Releases
from deploy.reports.history import details
from deploy.rollout import candidate, preflight, reload, rollout, weights
from deploy.rollout.liveness import Liveness
from deploy.rollout.plan import Plan, Rollout
from deploy.rollout.weights import WeightsRollout
from deploy.systemd.timers import Timers
from tests.release_fixtures import host_in, make_checkpoint, safetensors
from tests.rollout_fixtures import Moments, ScriptedContext, directories

WEIGHTS = "model/model.safetensors"
SHARDS = 4


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    """A host with the release 1.0.0, of several shards."""
    source = make_checkpoint(tmp_path / "checkpoint")
    for number in range(SHARDS):
        (source / f"{number}.safetensors").write_bytes(safetensors(100 + number))
    found = Releases(host_in(tmp_path))
    found.add(source, version="1.0.0")
    return found


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose contents were read for a comparison, in order."""
    names: list[str] = []
    compare = digests.compare

    def recorded(release: Release, *arguments: Any, files: Any = None, **options: Any) -> None:
        names.extend(file.path for file in (release.manifest.files if files is None else files))
        compare(release, *arguments, files=files, **options)

    monkeypatch.setattr(digests, "compare", recorded)
    return names


def edit(path: Path, content: bytes) -> None:
    """Change a file of a release so that its size, mode and modification time stay the same."""
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def tamper(release: Release, name: str = WEIGHTS) -> None:
    content = (release.path / name).read_bytes()
    edit(release.path / name, content[:-1] + bytes([content[-1] ^ 1]))


def test_files_are_read_beside_each_other(releases: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of several files are computed at a time; progress is reported by one thread at a time, for each byte."""
    monkeypatch.setattr(os, "cpu_count", lambda: SHARDS)
    meeting, reporting = threading.Barrier(SHARDS, timeout=20), threading.Lock()
    opened = Path.open
    counts: list[int] = []

    def open_together(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name[0].isdigit():
            meeting.wait()
        return opened(path, *arguments, **options)

    def advance(count: int) -> None:
        assert reporting.acquire(blocking=False)
        counts.append(count)
        time.sleep(0.01)
        reporting.release()

    monkeypatch.setattr(Path, "open", open_together)
    assert sum(counts) == 0
    release = releases.verify("1.0.0", advance)
    assert sum(counts) == release.manifest.size


class Endless(io.BytesIO):
    """A file that does not end within 20 s."""

    def __init__(self) -> None:
        super().__init__()
        self.deadline = time.monotonic() + 20

    def read(self, _: int | None = None) -> bytes:
        time.sleep(0.01)
        return b"x" if time.monotonic() < self.deadline else b""


def test_the_first_difference_ends_the_comparison(releases: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are stopped, and the error names the file that differs, not one that was stopped."""
    release, endless, opened = releases.get("1.0.0"), Endless(), Path.open
    tamper(release)
    monkeypatch.setattr(os, "cpu_count", lambda: SHARDS + 2)

    def read_on(path: Path, *arguments: Any, **options: Any) -> Any:
        return endless if path.name == "0.safetensors" else opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", read_on)
    with pytest.raises(Refused, match=r"model/model\.safetensors: its contents changed"):
        digests.compare(release, lambda _: None)
    assert time.monotonic() < endless.deadline
    assert endless.closed


def test_a_comparison_can_be_stopped(releases: Releases) -> None:
    """No further piece of a file is read."""
    stop, counts = threading.Event(), list[int]()
    stop.set()
    with pytest.raises(digests.Stopped):
        digests.compare(releases.get("1.0.0"), counts.append, stop=stop)
    assert counts == []


def test_unchanged_files_are_not_compared_again(releases: Releases, compared: list[str]) -> None:
    """After `add` and after `verify`, which always compares."""
    releases.ensure("1.0.0")
    assert compared == []
    releases.verify("1.0.0")
    assert sorted(compared) == sorted(file.path for file in releases.get("1.0.0").manifest.files)
    compared.clear()
    releases.ensure("1.0.0")
    assert compared == []


def _replaced(path: Path) -> None:
    path.with_name("copy").write_bytes(path.read_bytes())
    path.with_name("copy").chmod(0o444)
    path.with_name("copy").rename(path)


def _linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


CHANGES: dict[str, Callable[[Path], object]] = {
    "touched": lambda path: path.touch(),
    "its times set back": lambda path: os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns)),
    "another mode": lambda path: path.chmod(0o400),
    "writable": lambda path: path.chmod(0o644),
    "written with the same bytes": lambda path: edit(path, path.read_bytes()),
    "replaced by a copy": _replaced,
    "replaced by a symlink": _linked,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("name", [WEIGHTS, "release.json"])
def test_a_stamp_is_void_after_any_change(releases: Releases, name: str, change: Callable[[Path], object]) -> None:
    """Of any file of the release, the manifest included. Another is given only to regular files without a writer."""
    release = releases.get("1.0.0")
    for directory in (release.path, release.path / "model"):
        directory.chmod(0o755)
    change(release.path / name)
    assert not releases.stamps.hold(release)
    releases.stamps.write(release, states(release))
    is_fixed = (release.path / name).lstat().st_mode & 0o170222 == 0o100000
    assert releases.stamps.hold(release) is is_fixed


def test_a_stamp_of_another_user_is_ignored(releases: Releases, compared: list[str]) -> None:
    """Neither a stamp that others may write counts, nor one in a directory in which they may create it."""
    stamp = releases.host.state / "verified/1.0.0.json"
    release = releases.get("1.0.0")
    for path, mode in ((stamp, 0o666), (stamp, 0o664), (stamp.parent, 0o777)):
        before = path.stat().st_mode
        path.chmod(mode)
        assert not releases.stamps.hold(release), (path, oct(mode))
        path.chmod(before)
        assert releases.stamps.hold(release)
    tamper(release)
    forged = stamps._Stamp(version="1.0.0", files=states(release)).model_dump_json()
    if os.getuid() == 0:
        stamp.write_text(forged)
        assert releases.stamps.hold(release), "root's own stamp would count"
        for path in (stamp, stamp.parent):
            os.chown(path, 12345, 12345)
            assert not releases.stamps.hold(release), path
            os.chown(path, 0, 0)
    stamp.unlink()
    stamp.with_name("theirs").write_text(forged)
    stamp.symlink_to("theirs")
    assert not releases.stamps.hold(release), "symlinks are not followed"
    with pytest.raises(Refused, match="its contents changed"):
        releases.ensure("1.0.0")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0.0"}', '{"version": "1.0.0", "files": {}}'])
def test_a_damaged_stamp_does_not_hold(releases: Releases, content: str) -> None:
    """Nor does that of another version, put at its place."""
    stamp = releases.host.state / "verified/1.0.0.json"
    release = releases.get("1.0.0")
    other = stamp.read_text().replace('"version":"1.0.0"', '"version":"1.1.0"')
    for text in (content, other):
        stamp.write_text(text)
        assert not releases.stamps.hold(release)


def test_a_file_that_changes_while_it_is_compared_gets_no_stamp(
    releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stamp describes the files from before they were read."""
    release = releases.get("1.0.0")
    monkeypatch.setattr(digests, "compare", lambda *_: tamper(release))
    releases.verify("1.0.0")
    assert not releases.stamps.hold(release)


def test_a_removed_release_leaves_no_stamp(releases: Releases) -> None:
    """Another release of that version begins without one."""
    releases.remove("1.0.0")
    assert list((releases.host.state / "verified").iterdir()) == []


# --- rollouts ---

BEFORE_CUTOVER: dict[Strategy, list[Phase]] = {
    "overlap": ["preflight", "prepare", "start", "verify"],
    "swap": ["preflight"],
    "weights": ["preflight", "prepare"],
}
"""The last phases that a release whose weights differ may reach: nothing is given up in them."""


class Deploys:
    """Deploys of 1.1.0 on a host without processes; each phase but the preflight and the verification succeeds."""

    def __init__(self, context: ScriptedContext) -> None:
        self.context = context
        self.releases = Releases(context.host)
        self.at: dict[str, Callable[[], object]] = {}
        """What else happens in a phase."""

    def run(self, strategy: Strategy) -> Record:
        return rollout.deploy(self.context, Plan("1.1.0", strategy=strategy))

    @property
    def last(self) -> Record:
        return Journal(self.context.host).records()[-1]

    @property
    def phases(self) -> list[Phase]:
        return [step.phase for step in self.last.steps]

    def play(self, phase: Phase) -> Callable[[Any], None]:
        def played(one: Any) -> None:
            one = one if isinstance(one, Rollout) else one.rollout
            if phase != "vacate" or one.plan.strategy != "overlap":
                one.enter(phase, "")
            self.at.get(phase, lambda: None)()

        return played


@pytest.fixture
def deploys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deploys]:
    (tmp_path / "host").mkdir()
    with directories(tmp_path / "host") as host:
        found = Deploys(ScriptedContext.of(host, Moments()))
        found.releases.add(make_checkpoint(tmp_path / "checkpoint"), version="1.1.0")
        for name in ("start_guard", "stop_guard"):
            monkeypatch.setattr(Timers, name, lambda *_: None)
        monkeypatch.setattr("deploy.rollout.plan._WORKER_PUBLISH", 0.0)
        monkeypatch.setattr(preflight, "_check", lambda *_: None)
        phases: tuple[Phase, ...] = ("prepare", "vacate", "start", "canary", "cutover", "bake", "retire")
        for phase in phases:
            monkeypatch.setattr(rollout, phase, found.play(phase))
        monkeypatch.setattr(candidate, "answer_of", lambda ask, _: ask())
        monkeypatch.setattr(candidate, "run_checks", lambda *_: None)
        monkeypatch.setattr("deploy.rollout.slot_client.SlotClient.version", lambda _: "1.1.0")
        monkeypatch.setattr(Liveness, "require", lambda _: found.at.get("watch", lambda: None)())
        for module in ("candidate.revive", "candidate.stop_idle"):
            monkeypatch.setattr(f"deploy.rollout.{module}", lambda *_: None)
        monkeypatch.setattr(weights, "undo", lambda _: True)
        monkeypatch.setattr(WeightsRollout, "create", lambda one: _order(one))
        for name in ("_order", "_await"):
            monkeypatch.setattr(WeightsRollout, name, lambda *_: None)
        monkeypatch.setattr(WeightsRollout, "_workers", lambda _: found.at.get("watch", lambda: None)())
        for phase in ("vacate", "verify", "cutover"):
            monkeypatch.setattr(WeightsRollout, phase, found.play(phase))
        yield found


def _order(one: Rollout) -> WeightsRollout:
    from service.contract.weights_order import WeightsOrderFile, own_order

    order = own_order(id=one.record.id, before="1.0.0", after="1.1.0", workers=(), seconds=1.0)
    return WeightsRollout(one, 1, order, WeightsOrderFile(one.context.host.root, "blue", one.context.host.runtime))


@pytest.mark.parametrize("strategy", BEFORE_CUTOVER)
def test_a_deploy_of_unchanged_files_compares_nothing(
    deploys: Deploys, compared: list[str], strategy: Strategy
) -> None:
    """They were compared when the release was added."""
    assert deploys.run(strategy).outcome == "done"
    assert compared == []
    assert deploys.last.digests is None


@pytest.mark.parametrize("strategy", BEFORE_CUTOVER)
def test_tampered_weights_are_refused_before_anything_is_given_up(deploys: Deploys, strategy: Strategy) -> None:
    """Of the right size, with the old times: exit code 3 if nothing was touched, else 4, with the file's name."""
    tamper(deploys.releases.get("1.1.0"))
    with pytest.raises(GlmError, match=r"model/model\.safetensors: its contents changed") as raised:
        deploys.run(strategy)
    assert raised.value.exit_code == (3 if strategy == "swap" else 4)
    assert raised.value.hint == "remove it and add it again"
    assert deploys.phases == BEFORE_CUTOVER[strategy]
    assert deploys.last.outcome == ("refused" if strategy == "swap" else "not ready")
    assert deploys.context.slots.live == "blue"


@pytest.mark.parametrize("strategy", BEFORE_CUTOVER)
def test_files_that_are_read_as_text_are_compared_first(deploys: Deploys, strategy: Strategy) -> None:
    """A tampered configuration, tokenizer or chat template is never loaded: exit code 3, nothing was touched."""
    tamper(deploys.releases.get("1.1.0"), "model/config.json")
    with pytest.raises(Refused, match=r"model/config\.json: its contents changed"):
        deploys.run(strategy)
    assert deploys.phases == ["preflight"]


@pytest.mark.parametrize("strategy", ["overlap", "weights"])
def test_weights_that_change_during_the_load_are_refused(
    deploys: Deploys, monkeypatch: pytest.MonkeyPatch, strategy: Strategy
) -> None:
    """What was loaded may be what was there before, or after: also where a stamp held, and with the same bytes."""
    release = deploys.releases.get("1.1.0")

    def change(*_: object) -> None:
        edit(release.path / WEIGHTS, (release.path / WEIGHTS).read_bytes())

    deploys.at["start"] = change
    monkeypatch.setattr(WeightsRollout, "_await", change)
    with pytest.raises(NotReady, match=r"model/model\.safetensors: it was changed during the rollout"):
        deploys.run(strategy)
    assert deploys.phases == BEFORE_CUTOVER[strategy]


@pytest.mark.parametrize("strategy", ["overlap", "weights"])
def test_weights_are_compared_beside_the_load(
    deploys: Deploys, compared: list[str], monkeypatch: pytest.MonkeyPatch, strategy: Strategy
) -> None:
    """The load does not wait for the comparison, the cutover does; the workers are watched meanwhile."""
    release = deploys.releases.get("1.1.0")
    deploys.releases.stamps.remove("1.1.0")
    loaded, looks, order = threading.Event(), list[int](), list[str]()
    compare = digests.compare

    def slow(*arguments: Any, files: Any, **options: Any) -> None:
        if [file.path for file in files] == [WEIGHTS]:
            assert loaded.wait(20)
            order.append("compared")
        compare(*arguments, files=files, **options)

    def watch() -> None:
        looks.append(1)
        if len(looks) == 3:
            order.append("loaded")
            loaded.set()

    monkeypatch.setattr(digests, "compare", slow)
    deploys.at["watch"] = watch
    deploys.at["cutover"] = lambda: order.append("cutover")
    record = deploys.run(strategy)
    assert order == ["loaded", "compared", "cutover"]
    assert sorted(compared) == ["model/config.json", WEIGHTS]
    assert record.digests is not None
    assert "digests compared in" in details(record)
    assert deploys.releases.stamps.hold(release)


def test_a_rollout_that_fails_stops_the_comparison(deploys: Deploys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process does not hash on after its rollout has ended."""
    deploys.releases.stamps.remove("1.1.0")
    ended = threading.Event()

    def endless(*_: object, files: Any, stop: threading.Event | None = None) -> None:
        if stop is not None and stop.wait(20):
            ended.set()

    def fail() -> None:
        raise NotReady("it crashed")

    monkeypatch.setattr(digests, "compare", endless)
    deploys.at["start"] = fail
    with pytest.raises(NotReady, match="it crashed"):
        deploys.run("overlap")
    assert ended.wait(20)


def test_a_reload_compares_only_what_may_have_changed(
    deploys: Deploys, compared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new generation takes over by itself, so that the comparison comes first: exit code 3."""
    monkeypatch.setattr(reload, "require_units", lambda _: None)
    monkeypatch.setattr("deploy.rollout.new_generation.NewGeneration.wait", lambda *_: None)
    monkeypatch.setattr("deploy.systemd.systemctl.Systemd.reloading", lambda *_: None)
    assert reload.reload(deploys.context, Plan("1.1.0", kind="reload")).outcome == "done"
    assert compared == []
    tamper(deploys.releases.get("1.1.0"))
    with pytest.raises(Refused, match="its contents changed"):
        reload.reload(deploys.context, Plan("1.1.0", kind="reload"))


@pytest.mark.parametrize("kind", ["deploy", "reload"])
def test_the_parts_of_a_load_that_failed_are_recorded(
    deploys: Deploys, monkeypatch: pytest.MonkeyPatch, kind: Literal["deploy", "reload"]
) -> None:
    """As far as it had come."""

    def fail(*_: object, **__: object) -> None:
        raise NotReady("it crashed")

    new = SimpleNamespace(load={"imports": 2.0, "reading": 1.0}, is_serving=False)
    monkeypatch.setattr("deploy.rollout.new_generation.NewGeneration.wait", fail)
    monkeypatch.setattr("deploy.rollout.new_generation.NewGeneration.found", new)
    monkeypatch.setattr(reload, "require_units", lambda _: None)
    for name in ("starting", "reloading"):
        monkeypatch.setattr(f"deploy.systemd.systemctl.Systemd.{name}", lambda *_: None)
    monkeypatch.setattr(rollout, "start", candidate.start)
    begin = {"deploy": rollout.deploy, "reload": reload.reload}[kind]
    with pytest.raises(NotReady, match="it crashed"):
        begin(deploys.context, Plan("1.1.0", kind=kind))
    assert (deploys.last.kind, deploys.last.load) == (kind, new.load)


def test_a_dry_run_compares_and_writes_nothing(deploys: Deploys, compared: list[str]) -> None:
    """It has no load to compare beside."""
    plan = Plan("1.1.0")
    preflight.rehearse(deploys.context, plan)
    assert compared == []
    Stamps(deploys.context.host).remove("1.1.0")
    preflight.rehearse(deploys.context, plan)
    assert WEIGHTS in compared
    assert list((deploys.context.host.state / "verified").iterdir()) == []
    tamper(deploys.releases.get("1.1.0"))
    with pytest.raises(Refused, match="its contents changed"):
        preflight.rehearse(deploys.context, plan)
