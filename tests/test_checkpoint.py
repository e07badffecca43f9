"""Validation of what is imported: files, safetensors headers, the index, checks and engine settings."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest

from deploy.errors import Refused
from deploy.host import Host
from deploy.releases.checkpoint import read_tensors
from deploy.releases.store import Releases
from service.model import checkpoint_files
from service.model.release import ReleaseError
from tests.release_fixtures import host_in, make_checkpoint, safetensors, staging_directories

IMAGE = b"\x89PNG and more"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return host_in(tmp_path)


@pytest.fixture
def releases(host: Host) -> Releases:
    return Releases(host)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "deep/x.PKL", "x.ckpt", "arrays.npy", "x.pth"])
def test_pickle_is_refused_by_name(releases: Releases, host: Host, source: Path, name: str) -> None:
    """A file that may hold a pickle is refused by name, and nothing is published."""
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(Refused, match=name) as refusal:
        releases.add(source, version="1.0.0")
    assert "safetensors" in str(refusal.value.hint)
    assert releases.list() == []
    assert staging_directories(host) == []


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (safetensors()[:-1], "truncated"),
        (safetensors() + b"x", "truncated"),
        (safetensors()[:20], "damaged"),
        (b"", "damaged"),
        (b"short", "damaged"),
        (b"\xff" * 64, "damaged"),
        (b"<html><body>404 Not Found</body></html>", "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "damaged"),
        ((2).to_bytes(8, "little") + b"[]", "damaged"),
        ((11).to_bytes(8, "little") + b'{"w": null}', "damaged"),
        (safetensors(dtype="X9"), "damaged.*X9"),
        (safetensors(dtype="F32"), "damaged"),
        (safetensors(shape=[2, 3]), "damaged"),
        (safetensors(data_offsets=[1, 8]), "damaged"),
    ],
)
def test_damaged_tensors_are_refused(releases: Releases, source: Path, content: bytes, fact: str) -> None:
    """Truncated files, error pages, Git LFS pointers and inconsistent headers are refused before the copy."""
    (source / "model.safetensors").write_bytes(content)
    with pytest.raises(Refused, match=rf"model\.safetensors .*{fact}"):
        releases.add(source, version="1.0.0")


@pytest.mark.parametrize("end", ["8", None, [8], {}])
def test_damaged_offset_is_refused(releases: Releases, source: Path, end: object) -> None:
    """An offset that is not a number is refused as a damaged header, not raised as an unexpected error."""
    (source / "model.safetensors").write_bytes(safetensors(data_offsets=[0, end]))
    with pytest.raises(Refused, match=r"model\.safetensors .*damaged"):
        releases.add(source, version="1.0.0")


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("BOOL", 6), ("U8", 6), ("F8_E4M3", 6), ("F6_E2M3", 24), ("F4", 3), ("BF16", 12), ("F16", 12), ("I64", 48)],
)
def test_size_of_a_tensor_is_that_of_its_dtype_and_shape(tmp_path: Path, dtype: str, size: int) -> None:
    """A tensor's size in bytes, from its dtype and shape, is the length that the format requires."""
    shape = [4, 8] if dtype.startswith("F6") else [2, 3]
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(size, dtype=dtype, shape=shape))
    [(name, tensor)] = read_tensors(path, path.name).items()
    assert (name, tensor.size, tensor.elements) == ("w", size, math.prod(shape))
    assert str(tensor) == f"{dtype} {shape}"


def test_unreadable_tensors_are_refused(source: Path) -> None:
    """A file that cannot be read is refused by name."""
    with pytest.raises(Refused, match=r"a\.safetensors cannot be read"):
        read_tensors(source / "a.safetensors", "a.safetensors")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_incomplete_checkpoint_is_refused(releases: Releases, source: Path, missing: str) -> None:
    """A directory without a configuration or without weights is refused, with what is missing."""
    (source / missing).unlink()
    with pytest.raises(Refused, match=Path(missing).suffix):
        releases.add(source, version="1.0.0")


def test_source_that_is_not_a_directory_is_refused(releases: Releases, source: Path) -> None:
    """A path that does not exist, or that is a file, is refused by name."""
    for path in (source / "nothing", source / "config.json"):
        with pytest.raises(Refused, match=str(path)):
            releases.add(path, version="1.0.0")


def test_missing_shard_is_named(releases: Releases, source: Path) -> None:
    """Every shard in the index must exist."""
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Refused, match=r"model-00002-of-00002\.safetensors is missing"):
        releases.add(source, version="1.0.0")
    (source / "model-00002-of-00002.safetensors").write_bytes(safetensors())
    assert releases.add(source, version="1.0.0").version == "1.0.0"


@pytest.mark.parametrize(
    "index",
    ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": []}}', '{"weight_map": {"a": 1, "b": "x"}}'],
)
def test_damaged_index_is_refused(releases: Releases, source: Path, index: str) -> None:
    """An index that cannot be parsed is refused by name."""
    (source / "model.safetensors.index.json").write_text(index)
    with pytest.raises(Refused, match=r"index\.json"):
        releases.add(source, version="1.0.0")


def test_linked_files_are_copied_as_contents(releases: Releases, tmp_path: Path, source: Path) -> None:
    """Symlinks, as in a Hugging Face cache, are followed: the release holds the contents after the cache is deleted."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (source / "model.safetensors").rename(blobs / "0123abcd")
    (source / "model.safetensors").symlink_to("../blobs/0123abcd")
    added = releases.add(source, version="1.0.0")
    shutil.rmtree(blobs)
    shutil.rmtree(source)
    copied = added.path / "model/model.safetensors"
    assert not copied.is_symlink()
    assert copied.read_bytes() == safetensors()
    releases.verify("1.0.0")


@pytest.mark.parametrize("stray", ["dangling", "pipe"])
def test_special_files_are_refused(releases: Releases, source: Path, stray: str) -> None:
    """A dangling symlink or a FIFO is refused, and the FIFO is never opened."""
    if stray == "pipe":
        os.mkfifo(source / stray)
    else:
        (source / stray).symlink_to("nowhere")
    with pytest.raises(Refused, match=stray):
        releases.add(source, version="1.0.0")


def test_hidden_files_are_left_out(releases: Releases, source: Path) -> None:
    """Hidden files and directories are not imported."""
    (source / ".cache").mkdir()
    (source / ".cache/x.pkl").write_text("")
    (source / ".gitattributes").write_text("")
    names = {file.path for file in releases.add(source, version="1.0.0").manifest.files}
    assert names == {"model/config.json", "model/model.safetensors"}


def test_checks_are_imported_with_their_images(releases: Releases, source: Path) -> None:
    """Checks and engine settings beside the checkpoint go into release.json; the images of checks are copied."""
    (source / "red.png").write_bytes(IMAGE)
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
    assert (added.path / "red.png").read_bytes() == IMAGE
    assert "red.png" in {file.path for file in added.manifest.files}
    assert not (added.path / "model/checks.json").exists()
    releases.verify("1.0.0")


def test_checks_in_another_directory(releases: Releases, tmp_path: Path, source: Path) -> None:
    """Image paths are relative to the checks file."""
    directory = tmp_path / "checks"
    directory.mkdir()
    (directory / "red.png").write_bytes(IMAGE)
    (directory / "mine.json").write_text('[{"image": "red.png", "question": "?"}]')
    added = releases.add(source, version="1.0.0", checks=directory / "mine.json")
    assert (added.path / "red.png").read_bytes() == IMAGE


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
        '[{"answer": "a check without a question"}]',
        '[{"question": 7}]',
    ],
)
def test_invalid_checks_are_refused(releases: Releases, host: Host, source: Path, checks: str) -> None:
    """An invalid checks file is refused when the release is added, not when it is rolled out."""
    (source / "checks.json").write_text(checks)
    with pytest.raises(Refused):
        releases.add(source, version="1.0.0")
    assert releases.list() == []
    assert staging_directories(host) == []


def test_invalid_engine_settings_are_refused(releases: Releases, tmp_path: Path, source: Path) -> None:
    """Engine settings are refused when the release is added, not when it is rolled out; a given file must exist."""
    path = tmp_path / "engine.json"
    for text in ("[]", '{"device": "quantum"}', '{"rows": 0}', '{"rows": "64"}', '{"row": 64}', '{"dtype": "int3"}'):
        path.write_text(text)
        with pytest.raises(Refused, match=path.name):
            releases.add(source, version="1.0.0", engine=path)
    with pytest.raises(Refused, match=r"absent\.json"):
        releases.add(source, version="1.0.0", engine=tmp_path / "absent.json")
    assert releases.list() == []


@pytest.mark.parametrize("place", [None, "text_config"])
@pytest.mark.parametrize("method", ["fp8", "gptq", "bitsandbytes", "compressed-tensors", None])
def test_quantised_weights_are_refused(releases: Releases, source: Path, place: str | None, method: str | None) -> None:
    """The engine runs no quantised checkpoint: `release add` says so, with the way out, and so does the service."""
    quantised = {"quantization_config": {"bits": 4} | ({"quant_method": method} if method else {})}
    config = {"architectures": [checkpoint_files.ARCHITECTURE]} | ({place: quantised} if place else quantised)
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match=f"quantised \\({method or 'an unknown method'}\\)") as refused:
        releases.add(source)
    assert "bfloat16" in str(refused.value.hint)
    assert "dequantize()" in str(refused.value.hint)
    for name in checkpoint_files.REQUIRED[1:]:
        (source / name).write_text("{}")
    with pytest.raises(ReleaseError, match=r"are quantised \("):
        checkpoint_files.check(source)


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_config_that_names_no_quantisation_is_accepted(releases: Releases, source: Path, nothing: object) -> None:
    """A null or an empty object there means plain weights."""
    (source / "config.json").write_text(json.dumps({"quantization_config": nothing}))
    assert releases.add(source).version == "checkpoint"
