"""Releases: immutability, and imports that are complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.errors import GlmError, Refused
from deploy.host import Host
from deploy.journal.journal import Journal, begin
from deploy.releases import store as module
from deploy.releases.store import Releases
from tests.box import CODE
from tests.release_fixtures import host_in, make_checkpoint, safetensors, staging_directories


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return host_in(tmp_path)


@pytest.fixture
def releases(host: Host) -> Releases:
    return Releases(host)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


def test_added_release_is_complete(releases: Releases, host: Host, source: Path) -> None:
    """A release holds every file of the checkpoint with its size and digest, and progress is reported for each byte."""
    (source / "tokenizer").mkdir()
    (source / "tokenizer/vocab.txt").write_text("a b c")
    progress: list[int] = []

    def begin(total: int) -> Callable[[int], None]:
        assert total == 2 + len(safetensors()) + 5
        return progress.append

    added = releases.add(source, version="1.0.0", begin=begin)
    assert added.path == host.releases / "1.0.0"
    assert {file.path for file in added.manifest.files} == {
        "model/config.json", "model/model.safetensors", "model/tokenizer/vocab.txt",
    }  # fmt: skip
    for file in added.manifest.files:
        content = (added.path / file.path).read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert sum(progress) == added.manifest.size
    assert releases.list() == [added] == [releases.get("1.0.0")]
    assert releases.verify("1.0.0") == added
    assert staging_directories(host) == []


def test_directory_names_the_version(releases: Releases, source: Path) -> None:
    """Without --version the release is named after the checkpoint directory."""
    assert releases.add(source).version == "checkpoint"


def test_list_is_ordered_by_age_and_skips_other_files(releases: Releases, host: Host, source: Path) -> None:
    """The list is ordered from oldest to newest; files, and stray or damaged directories, are skipped."""
    for version in ("b", "a", "c"):
        releases.add(source, version=version)
    (host.releases / "stray").mkdir()
    (host.releases / "file").write_text("")
    (host.releases / "damaged").mkdir()
    (host.releases / "damaged/release.json").write_text('{"version": 1')
    assert [one.version for one in releases.list()] == ["b", "a", "c"]


@pytest.mark.parametrize(
    "version",
    ["../x", "..", ".", "a/b", "/etc", " ", "1.0 0", "1.0\n", "-rf", ".hidden", "版本", "é", "a\0b", "x" * 101],
)
def test_invalid_version_is_refused(releases: Releases, host: Host, source: Path, version: str) -> None:
    """A version cannot be a path, a hidden name or an option, in `add` and in `get`."""
    with pytest.raises(Refused):
        releases.add(source, version=version)
    with pytest.raises(Refused):
        releases.get(version)
    assert releases.list() == []


def test_existing_version_is_refused(releases: Releases, source: Path) -> None:
    """A release is immutable: adding the same version again is refused."""
    before = releases.add(source, version="1.0.0")
    (source / "config.json").write_text('{"other": true}')
    with pytest.raises(Refused, match=r"1\.0\.0 exists"):
        releases.add(source, version="1.0.0")
    assert releases.list() == [before]
    releases.verify("1.0.0")


def test_published_files_are_read_only(releases: Releases, host: Host, source: Path) -> None:
    """Files and directories of a release are read-only: running models map them. The server's user can read them."""
    added = releases.add(source, version="1.0.0")
    everything = [added.path, *added.path.rglob("*")]
    assert len(everything) == 5
    assert all(path.stat().st_mode & 0o222 == 0 for path in everything)
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in everything)


@pytest.mark.parametrize(
    ("damage", "fact"),
    [
        (lambda path: path.write_bytes(safetensors()[:-1] + b"\x01"), "contents changed"),
        (lambda path: path.write_bytes(safetensors()[:-1]), "its size in bytes is"),
        (lambda path: path.unlink(), "missing"),
    ],
)
def test_tampered_file_is_found(
    releases: Releases, host: Host, source: Path, damage: Callable[[Path], None], fact: str
) -> None:
    """A changed, truncated or missing file: verify refuses with its name and how it differs."""
    added = releases.add(source, version="1.0.0")
    weights = added.path / "model/model.safetensors"
    weights.parent.chmod(0o755)
    weights.chmod(0o644)
    damage(weights)
    with pytest.raises(Refused, match=rf"model/model\.safetensors: .*{fact}"):
        releases.verify("1.0.0")


def test_unknown_version_is_refused_with_the_existing_ones(releases: Releases, source: Path) -> None:
    """The refusal of an unknown version lists the existing ones."""
    with pytest.raises(Refused, match=r"no release 9") as refusal:
        releases.get("9")
    assert "existing releases: none;" in str(refusal.value.hint)
    releases.add(source, version="1.0.0")
    with pytest.raises(Refused) as refusal:
        releases.verify("9")
    assert "1.0.0" in str(refusal.value.hint)


def test_release_in_use_is_not_removed(releases: Releases, host: Host, source: Path) -> None:
    """Remove and prune keep a release while a slot leads to it; afterwards it can be removed entirely."""
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        releases.add(source, version=version)
    (host.root / "blue").symlink_to("releases/1.0.0")
    assert releases.slots_of("1.0.0") == ("blue",)
    with pytest.raises(Refused, match=r"1\.0\.0 is in use: slot blue"):
        releases.remove("1.0.0")
    assert releases.prune(0) == ("1.1.0", "1.2.0")
    releases.verify("1.0.0")
    (host.root / "blue").unlink()
    releases.remove("1.0.0")
    assert list(host.releases.iterdir()) == []


def test_release_of_an_unfinished_rollout_is_not_removed(releases: Releases, host: Host, source: Path) -> None:
    """A rollout protects its release before a slot leads to it: workers may be loading its weights."""
    releases.add(source, version="1.0.0")
    journal = Journal(host)
    with journal.lock():
        entry = begin(journal, "deploy", "1.0.0", "blue", "weights")
        entry.enter("prepare")
        with pytest.raises(Refused, match="a rollout of it is under way"):
            releases.remove("1.0.0")
        entry.end("not ready")
    releases.remove("1.0.0")


def test_release_of_a_running_generation_is_not_removed(releases: Releases, host: Host, source: Path) -> None:
    """A generation that runs protects its release, even when no slot leads to it any more."""
    releases.add(source, version="1.0.0")
    record: dict[str, Any] = {"generation": 1, "slot": "blue", "version": "1.0.0", "release": "", "master": os.getpid()}
    start = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
    (host.runtime / "blue/1").mkdir(parents=True)
    path = host.runtime / "blue/1/generation.json"
    path.write_text(json.dumps(record | {"start_ticks": int(start)}))
    with pytest.raises(Refused, match="still serves"):
        releases.remove("1.0.0")
    path.write_text(json.dumps(record | {"start_ticks": int(start) - 1}))  # an earlier process with the same pid
    releases.remove("1.0.0")


def test_prune_keeps_the_newest(releases: Releases, source: Path) -> None:
    """Prune removes the oldest releases and returns their versions; a second call removes nothing."""
    for version in ("1", "2", "3", "4"):
        releases.add(source, version=version)
    assert releases.prune(2) == ("1", "2")
    assert [one.version for one in releases.list()] == ["3", "4"]
    assert releases.prune(2) == releases.prune(9) == ()


def test_damaged_release_can_be_removed(releases: Releases, host: Host, source: Path) -> None:
    """A damaged release can be removed, even if its release.json is what is damaged."""
    added = releases.add(source, version="1.0.0")
    added.path.chmod(0o755)
    (added.path / "release.json").chmod(0o644)
    (added.path / "release.json").write_text("{")
    with pytest.raises(Refused, match="damaged"):
        releases.get("1.0.0")
    releases.remove("1.0.0")
    assert releases.add(source, version="1.0.0").version == "1.0.0"


def test_full_disk_is_refused_with_figures(
    releases: Releases, host: Host, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Insufficient disk space is refused before anything is copied, with the space needed and the space free."""
    (source / "model.safetensors").write_bytes(safetensors(3 << 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=65 << 20))
    with pytest.raises(Refused, match="67 MiB needed, 65 MiB free") as refusal:
        releases.add(source, version="1.0.0")
    assert "prune" in str(refusal.value.hint)
    assert list(host.releases.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_disk_that_fills_up_during_the_copy(
    releases: Releases, host: Host, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the file, nothing is published, and the staging directory is deleted."""
    (source / "model.safetensors").write_bytes(safetensors(3 << 20))
    monkeypatch.setattr(module, "_RESERVE", -(8 << 20))  # as if another process filled the disk after the check
    host.releases.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(host.releases)], check=True, timeout=10)
    try:
        with pytest.raises(GlmError, match=r"checkpoint/[a-z_.]+: No space left") as failure:
            releases.add(source, version="1.0.0")
        assert failure.value.exit_code == 1
        assert list(host.releases.iterdir()) == []
    finally:
        subprocess.run(["umount", str(host.releases)], check=True, timeout=10)


_ADD = """
import sys, time
from pathlib import Path
from deploy.host import Host
from deploy.releases.store import Releases
import dataclasses

def begin(total):
    def advance(more):
        print("copied", flush=True)
        time.sleep(60)
    return advance

host = dataclasses.replace(Host.find(user=True), root=Path(sys.argv[1]), runtime=Path(sys.argv[1]) / "run")
Releases(host).add(Path(sys.argv[2]), version=sys.argv[3], begin=begin)
"""


def test_killed_add_publishes_nothing_and_is_cleaned_up(releases: Releases, host: Host, source: Path) -> None:
    """Kill -9 during a copy publishes nothing; the next add deletes what it left, not what a running add uses."""
    with (source / "model.safetensors").open("wb") as file:
        file.write(safetensors(64 << 20)[:200])
        file.truncate(len(safetensors(64 << 20)))  # sparse
    adders = [
        subprocess.Popen(
            [sys.executable, "-c", _ADD, str(host.root), str(source), version],
            stdout=subprocess.PIPE, text=True, cwd=CODE,
        )
        for version in ("killed", "running")
    ]  # fmt: skip
    killed, running = adders
    try:
        for adder in adders:
            assert adder.stdout is not None
            assert adder.stdout.readline() == "copied\n"
        assert len(staging_directories(host)) == 2
        killed.send_signal(signal.SIGKILL)
        killed.wait(10)
        assert releases.list() == []
        (source / "model.safetensors").write_bytes(safetensors())
        releases.add(source, version="1.0.0")
        assert [one.version for one in releases.list()] == ["1.0.0"]
        assert staging_directories(host) == [f".incoming-running-{running.pid}"]
    finally:
        for adder in adders:
            adder.kill()
            adder.wait(10)
            assert adder.stdout is not None
            adder.stdout.close()
    releases.add(source, version="1.1.0")
    assert staging_directories(host) == []


def test_interrupt_from_the_keyboard(releases: Releases, host: Host, source: Path) -> None:
    """Ctrl-C during a copy: nothing is published and the staging directory is deleted."""

    def begin(_: int) -> Callable[[int], None]:
        def interrupt(_: int) -> None:
            raise KeyboardInterrupt

        return interrupt

    with pytest.raises(KeyboardInterrupt):
        releases.add(source, version="1.0.0", begin=begin)
    assert list(host.releases.iterdir()) == []


def test_concurrent_adds_of_one_version(
    releases: Releases, host: Host, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second rename is refused, and the release that was published first is unchanged."""
    seal = module._seal

    def overtaken(staging: Path) -> None:
        monkeypatch.setattr(module, "_seal", seal)
        (host.releases / "1.0.0").mkdir()
        (host.releases / "1.0.0/release.json").write_text("the first")
        seal(staging)

    monkeypatch.setattr(module, "_seal", overtaken)
    with pytest.raises(Refused, match=r"1\.0\.0 exists"):
        releases.add(source, version="1.0.0")
    assert (host.releases / "1.0.0/release.json").read_text() == "the first"
    assert staging_directories(host) == []


def test_root_that_is_a_file(releases: Releases, host: Host, source: Path) -> None:
    """A root that is not a directory is reported as an error with a hint."""
    host.root.write_text("")
    with pytest.raises(GlmError, match="cannot write to"):
        releases.add(source, version="1.0.0")
    assert releases.list() == []
