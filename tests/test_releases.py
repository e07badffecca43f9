"""Releases: what is let in, that it never changes, and that an import leaves all or nothing."""

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

PICTURE = b"\x89PNG, or so"


def tensors(size: int = 8) -> bytes:
    """A safetensors file with one tensor of `size` bytes."""
    head = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(size)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(
        user=True,
        root=tmp_path / "root",
        runtime=tmp_path / "run",
        state=tmp_path / "state",
        units=tmp_path / "units",
        settings=tmp_path / "glm.env",
    )


@pytest.fixture
def releases(host: Host) -> Releases:
    return Releases(host)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The smallest checkpoint."""
    source = tmp_path / "checkpoint"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(tensors())
    return source


def leftovers(host: Host) -> list[str]:
    return [path.name for path in host.releases.glob(".*")] if host.releases.exists() else []


def test_added_release_is_complete_and_says_so(releases: Releases, host: Host, source: Path) -> None:
    """A release holds every file of the checkpoint with its size and digest, and lists itself."""
    (source / "tokenizer").mkdir()
    (source / "tokenizer/vocab.txt").write_text("a b c")
    told: list[int] = []

    def begin(total: int) -> Callable[[int], None]:
        assert total == 2 + len(tensors()) + 5
        return told.append

    added = releases.add(source, version="1.0.0", begin=begin)
    assert added.path == host.releases / "1.0.0"
    assert {file.path for file in added.manifest.files} == {
        "model/config.json", "model/model.safetensors", "model/tokenizer/vocab.txt",
    }  # fmt: skip
    for file in added.manifest.files:
        content = (added.path / file.path).read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert sum(told) == added.manifest.size
    assert releases.list() == [added] == [releases.get("1.0.0")]
    assert releases.verify("1.0.0") == added
    assert leftovers(host) == []


def test_directory_names_the_version(releases: Releases, source: Path) -> None:
    """Without --version the checkpoint's own directory names the release."""
    assert releases.add(source).version == "checkpoint"


def test_list_is_in_order_of_age_and_passes_over_what_is_no_release(
    releases: Releases, host: Host, source: Path
) -> None:
    """The list goes from oldest to newest; a stray or damaged directory does not hide the others."""
    for version in ("b", "a", "c"):
        releases.add(source, version=version)
    (host.releases / "stray").mkdir()
    (host.releases / "file").write_text("")
    (host.releases / "damaged").mkdir()
    (host.releases / "damaged/release.json").write_text('{"version": 1')
    assert [one.version for one in releases.list()] == ["b", "a", "c"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "deep/x.PKL", "x.ckpt", "arrays.npy", "x.pth"])
def test_pickle_is_refused_by_name(releases: Releases, host: Host, source: Path, name: str) -> None:
    """A file that may hold a pickle is refused, named, and nothing is published."""
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(Refused, match=name) as refusal:
        releases.add(source, version="1.0.0")
    assert "safetensors" in str(refusal.value.hint)
    assert releases.list() == []
    assert leftovers(host) == []


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (tensors()[:-1], "truncated"),
        (tensors() + b"x", "truncated"),
        (tensors()[:20], "damaged"),
        (b"", "damaged"),
        (b"short", "damaged"),
        (b"\xff" * 64, "damaged"),
        (b"<html><body>404 Not Found</body></html>", "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "damaged"),
        ((2).to_bytes(8, "little") + b"[]", "damaged"),
        ((11).to_bytes(8, "little") + b'{"w": null}', "damaged"),
    ],
)
def test_damaged_tensors_are_refused(releases: Releases, source: Path, content: bytes, fact: str) -> None:
    """A download that broke off, an error page, a Git LFS pointer: seen before a byte is copied."""
    (source / "model.safetensors").write_bytes(content)
    with pytest.raises(Refused, match=rf"model\.safetensors .*{fact}"):
        releases.add(source, version="1.0.0")


@pytest.mark.parametrize("end", ["8", None, [8], {}])
def test_tensor_that_ends_nowhere_is_refused(releases: Releases, source: Path, end: object) -> None:
    """A head whose offsets are no numbers is a damaged head, not an unexpected error."""
    head = json.dumps({"w": {"dtype": "U8", "shape": [8], "data_offsets": [0, end]}}).encode()
    (source / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(8))
    with pytest.raises(Refused, match=r"model\.safetensors"):
        releases.add(source, version="1.0.0")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_half_a_checkpoint_is_refused(releases: Releases, source: Path, missing: str) -> None:
    """Without a configuration or without weights it is no checkpoint, and the refusal says what is missing."""
    (source / missing).unlink()
    with pytest.raises(Refused, match=Path(missing).suffix):
        releases.add(source, version="1.0.0")


def test_source_that_is_no_directory_is_refused(releases: Releases, source: Path) -> None:
    """A path to nothing, or to one file, is refused with the path in it."""
    for path in (source / "nothing", source / "config.json"):
        with pytest.raises(Refused, match=str(path)):
            releases.add(path, version="1.0.0")


def test_missing_shard_is_named(releases: Releases, source: Path) -> None:
    """Every shard that the index names must be there."""
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Refused, match=r"model-00002-of-00002\.safetensors is missing"):
        releases.add(source, version="1.0.0")
    (source / "model-00002-of-00002.safetensors").write_bytes(tensors())
    assert releases.add(source, version="1.0.0").version == "1.0.0"


@pytest.mark.parametrize(
    "index",
    ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": []}}', '{"weight_map": {"a": 1, "b": "x"}}'],
)
def test_damaged_index_is_refused(releases: Releases, source: Path, index: str) -> None:
    """An index that cannot be understood is refused by name."""
    (source / "model.safetensors.index.json").write_text(index)
    with pytest.raises(Refused, match=r"index\.json"):
        releases.add(source, version="1.0.0")


@pytest.mark.parametrize(
    "version",
    ["../x", "..", ".", "a/b", "/etc", " ", "1.0 0", "1.0\n", "-rf", ".hidden", "版本", "é", "a\0b", "x" * 101],
)
def test_version_that_is_no_name_is_refused(releases: Releases, host: Host, source: Path, version: str) -> None:
    """A version is a plain name: nothing that leads elsewhere, hides, or looks like an option; asked or added."""
    with pytest.raises(Refused):
        releases.add(source, version=version)
    with pytest.raises(Refused):
        releases.get(version)
    assert releases.list() == []


def test_linked_files_are_copied_as_contents(releases: Releases, tmp_path: Path, source: Path) -> None:
    """A Hugging Face cache is full of links into its blobs: the release holds the contents and survives the cache."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (source / "model.safetensors").rename(blobs / "0123abcd")
    (source / "model.safetensors").symlink_to("../blobs/0123abcd")
    added = releases.add(source, version="1.0.0")
    shutil.rmtree(blobs)
    shutil.rmtree(source)
    copied = added.path / "model/model.safetensors"
    assert not copied.is_symlink()
    assert copied.read_bytes() == tensors()
    releases.verify("1.0.0")


@pytest.mark.parametrize("stray", ["dangling", "pipe"])
def test_what_is_no_file_is_refused(releases: Releases, source: Path, stray: str) -> None:
    """A dangling link or a pipe among the files is refused, and nobody waits for a byte from it."""
    if stray == "pipe":
        os.mkfifo(source / stray)
    else:
        (source / stray).symlink_to("nowhere")
    with pytest.raises(Refused, match=stray):
        releases.add(source, version="1.0.0")


def test_hidden_files_stay_outside(releases: Releases, source: Path) -> None:
    """.git and .cache beside the weights are no part of a release."""
    (source / ".cache").mkdir()
    (source / ".cache/x.pkl").write_text("")
    (source / ".gitattributes").write_text("")
    names = {file.path for file in releases.add(source, version="1.0.0").manifest.files}
    assert names == {"model/config.json", "model/model.safetensors"}


def test_existing_version_is_refused(releases: Releases, source: Path) -> None:
    """A release never changes: the same version again is refused, whatever it would hold."""
    before = releases.add(source, version="1.0.0")
    (source / "config.json").write_text('{"other": true}')
    with pytest.raises(Refused, match=r"1\.0\.0 exists"):
        releases.add(source, version="1.0.0")
    assert releases.list() == [before]
    releases.verify("1.0.0")


def test_published_files_are_read_only(releases: Releases, host: Host, source: Path) -> None:
    """Nobody may write into a release, files and directories alike: a running model has them mapped."""
    added = releases.add(source, version="1.0.0")
    everything = [added.path, *added.path.rglob("*")]
    assert len(everything) == 5
    assert all(path.stat().st_mode & 0o222 == 0 for path in everything)
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in everything)  # the server is another user


@pytest.mark.parametrize(
    ("harm", "fact"),
    [
        (lambda path: path.write_bytes(tensors()[:-1] + b"\x01"), "contents changed"),
        (lambda path: path.write_bytes(tensors()[:-1]), "bytes instead of"),
        (lambda path: path.unlink(), "missing"),
    ],
)
def test_tampered_file_is_found(
    releases: Releases, host: Host, source: Path, harm: Callable[[Path], None], fact: str
) -> None:
    """One byte changed, cut off or gone: verify names the file and how it differs."""
    added = releases.add(source, version="1.0.0")
    victim = added.path / "model/model.safetensors"
    victim.parent.chmod(0o755)
    victim.chmod(0o644)
    harm(victim)
    with pytest.raises(Refused, match=rf"model/model\.safetensors: .*{fact}"):
        releases.verify("1.0.0")


def test_unknown_version_is_refused_with_the_known_ones(releases: Releases, source: Path) -> None:
    """Who mistypes a version is told which there are."""
    with pytest.raises(Refused, match=r"no release 9") as refusal:
        releases.get("9")
    assert "none yet" in str(refusal.value.hint)
    releases.add(source, version="1.0.0")
    with pytest.raises(Refused) as refusal:
        releases.verify("9")
    assert "1.0.0" in str(refusal.value.hint)


def test_release_in_use_is_not_removed(releases: Releases, host: Host, source: Path) -> None:
    """While a slot points to it a release stays, for remove and for prune; afterwards it goes entirely."""
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


def test_release_that_a_rollout_is_about_is_not_removed(releases: Releases, host: Host, source: Path) -> None:
    """Before any slot points to it: its weights may be on their way into a model that runs."""
    releases.add(source, version="1.0.0")
    journal = Journal(host)
    with journal.lock():
        entry = begin(journal, "deploy", "1.0.0", "blue", "weights")
        entry.enter("prepare")
        with pytest.raises(Refused, match="a rollout of it is under way"):
            releases.remove("1.0.0")
        entry.end("not ready")
    releases.remove("1.0.0")


def test_release_that_a_generation_still_serves_is_not_removed(releases: Releases, host: Host, source: Path) -> None:
    """A slot that points elsewhere already may still serve it: the living generation's record protects it."""
    releases.add(source, version="1.0.0")
    record: dict[str, Any] = {"generation": 1, "slot": "blue", "version": "1.0.0", "release": "", "master": os.getpid()}
    birth = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
    (host.runtime / "blue/1").mkdir(parents=True)
    path = host.runtime / "blue/1/generation.json"
    path.write_text(json.dumps(record | {"born": int(birth)}))
    with pytest.raises(Refused, match="still serves"):
        releases.remove("1.0.0")
    path.write_text(json.dumps(record | {"born": int(birth) - 1}))  # another process that had the same number
    releases.remove("1.0.0")


def test_prune_keeps_the_newest(releases: Releases, source: Path) -> None:
    """Pruning takes the oldest away and says which; asked again it finds nothing."""
    for version in ("1", "2", "3", "4"):
        releases.add(source, version=version)
    assert releases.prune(2) == ("1", "2")
    assert [one.version for one in releases.list()] == ["3", "4"]
    assert releases.prune(2) == releases.prune(9) == ()


def test_damaged_release_can_be_removed(releases: Releases, host: Host, source: Path) -> None:
    """What verify and get tell to remove can be removed, even when its own release.json is what was damaged."""
    added = releases.add(source, version="1.0.0")
    added.path.chmod(0o755)
    (added.path / "release.json").chmod(0o644)
    (added.path / "release.json").write_text("{")
    with pytest.raises(Refused, match="damaged"):
        releases.get("1.0.0")
    releases.remove("1.0.0")
    assert releases.add(source, version="1.0.0").version == "1.0.0"


def test_checks_come_with_their_pictures(releases: Releases, source: Path) -> None:
    """Checks beside the checkpoint become the release's own, and the pictures that they name come with it."""
    (source / "red.png").write_bytes(PICTURE)
    (source / "engine.json").write_text('{"dtype": "float32"}')
    checks = [
        {"name": "red", "image": "red.png", "question": "Which colour?", "answer": "red", "max_tokens": 4},
        {"image": "red.png", "question": "Again?"},
        {"image": "data:image/png;base64,AAAA", "question": "And this?"},
    ]
    (source / "checks.json").write_text(json.dumps(checks))
    added = releases.add(source, version="1.0.0")
    assert list(added.manifest.checks) == checks
    assert added.manifest.engine == {"dtype": "float32"}
    assert (added.path / "red.png").read_bytes() == PICTURE
    assert "red.png" in {file.path for file in added.manifest.files}
    assert not (added.path / "model/checks.json").exists()
    releases.verify("1.0.0")


def test_checks_may_lie_elsewhere(releases: Releases, tmp_path: Path, source: Path) -> None:
    """Pictures are looked for beside the checks file that names them."""
    place = tmp_path / "checks"
    place.mkdir()
    (place / "red.png").write_bytes(PICTURE)
    (place / "mine.json").write_text('[{"image": "red.png", "question": "?"}]')
    added = releases.add(source, version="1.0.0", checks=place / "mine.json")
    assert (added.path / "red.png").read_bytes() == PICTURE


@pytest.mark.parametrize(
    "checks",
    [
        "{",
        "{}",
        '"why?"',
        '["why?"]',
        '[{"image": "absent.png", "question": "?"}]',
        '[{"image": "../config.json", "question": "?"}]',
        '[{"image": "/etc/hostname", "question": "?"}]',
        '[{"answer": "a check that asks nothing"}]',
        '[{"question": 7}]',
    ],
)
def test_checks_that_cannot_be_asked_are_refused(releases: Releases, host: Host, source: Path, checks: str) -> None:
    """A checks file that could never pass is refused when it is added, not when the release is rolled out."""
    (source / "checks.json").write_text(checks)
    with pytest.raises(Refused):
        releases.add(source, version="1.0.0")
    assert releases.list() == []
    assert leftovers(host) == []


def test_settings_that_are_no_object_are_refused(releases: Releases, tmp_path: Path, source: Path) -> None:
    """Engine settings must be a JSON object, and a file that was named must be there."""
    (tmp_path / "engine.json").write_text("[]")
    for path in (tmp_path / "engine.json", tmp_path / "absent.json"):
        with pytest.raises(Refused, match=path.name):
            releases.add(source, version="1.0.0", engine=path)


def test_full_disk_is_refused_with_figures(
    releases: Releases, host: Host, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little room is seen before anything is copied; the refusal says how much is needed and how much is free."""
    (source / "model.safetensors").write_bytes(tensors(3 << 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=65 << 20))
    with pytest.raises(Refused, match="67 MiB needed, 65 MiB free") as refusal:
        releases.add(source, version="1.0.0")
    assert "prune" in str(refusal.value.hint)
    assert list(host.releases.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_disk_that_fills_up_meanwhile_publishes_nothing(
    releases: Releases, host: Host, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full before the last byte: the error names the file, nothing is published, nothing stays."""
    (source / "model.safetensors").write_bytes(tensors(3 << 20))
    monkeypatch.setattr(module, "_SPARE", -(8 << 20))  # as if somebody else wrote after we had looked
    host.releases.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(host.releases)], check=True, timeout=10)
    try:
        with pytest.raises(GlmError, match=r"model\.safetensors: No space left") as failure:
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


def test_interrupted_add_publishes_nothing_and_is_swept_away(releases: Releases, host: Host, source: Path) -> None:
    """Kill -9 in the middle of a copy leaves no release; the next add clears it away, but nothing of a living one."""
    with (source / "model.safetensors").open("wb") as file:
        file.write(tensors(64 << 20)[:200])
        file.truncate(len(tensors(64 << 20)))  # a file with a hole: quick to make
    adders = [
        subprocess.Popen(
            [sys.executable, "-c", _ADD, str(host.root), str(source), version],
            stdout=subprocess.PIPE, text=True, cwd=CODE,
        )
        for version in ("dying", "living")
    ]  # fmt: skip
    dying, living = adders
    try:
        for adder in adders:
            assert adder.stdout is not None
            assert adder.stdout.readline() == "copied\n"
        assert len(leftovers(host)) == 2
        dying.send_signal(signal.SIGKILL)
        dying.wait(10)
        assert releases.list() == []
        (source / "model.safetensors").write_bytes(tensors())
        releases.add(source, version="1.0.0")
        assert [one.version for one in releases.list()] == ["1.0.0"]
        assert leftovers(host) == [f".incoming-living-{living.pid}"]
    finally:
        for adder in adders:
            adder.kill()
            adder.wait(10)
            assert adder.stdout is not None
            adder.stdout.close()
    releases.add(source, version="1.1.0")
    assert leftovers(host) == []


def test_interrupt_from_the_keyboard_leaves_nothing(releases: Releases, host: Host, source: Path) -> None:
    """Ctrl-C while it copies: nothing is published and nothing stays."""

    def begin(_: int) -> Callable[[int], None]:
        def interrupt(_: int) -> None:
            raise KeyboardInterrupt

        return interrupt

    with pytest.raises(KeyboardInterrupt):
        releases.add(source, version="1.0.0", begin=begin)
    assert list(host.releases.iterdir()) == []


def test_two_adds_of_one_version_end_with_one_release(
    releases: Releases, host: Host, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes second to the rename is refused, and what the first published stays as it is."""
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
    assert leftovers(host) == []


def test_root_that_cannot_hold_releases(releases: Releases, host: Host, source: Path) -> None:
    """A root that is a file is a plain fact with a hint."""
    host.root.write_text("")
    with pytest.raises(GlmError, match="cannot write to"):
        releases.add(source, version="1.0.0")
    assert releases.list() == []
