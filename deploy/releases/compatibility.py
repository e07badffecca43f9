"""Whether the weights of one release fit the model of another: seen from their files, before anything is touched."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from deploy.errors import Refused
from deploy.releases.store import Release

__all__ = ["require_same"]

_HINT = "`--strategy overlap` takes any release"
_TOLD = frozenset({"transformers_version", "_name_or_path", "_commit_hash", "_from_model_config"})
"""Keys of a configuration that tell where it is from and change nothing."""
_WEIGHTS, _INDEX, _READ_BY_PEOPLE = ".safetensors", ".safetensors.index.json", {".md", ".png", ".jpg", ".pdf"}
_LONGEST_HEAD = 100 << 20  # bytes; the safetensors format allows no more


def require_same(old: Release, new: Release) -> None:
    """Refuse `new` unless it is `old` with other weights: all else that a running model was built from is the same."""
    if old.manifest.engine != new.manifest.engine:
        raise _other(old, new, "their engine settings differ")
    if _environment(old) != _environment(new):
        raise _other(old, new, "they bring other Python environments")
    before, after = _files(old), _files(new)
    if others := sorted(before.keys() ^ after.keys()):
        raise _other(old, new, f"only one of them has {others[0]}")
    for name, digest in before.items():
        if digest != after[name] and not _says_the_same(old, new, name):
            raise _other(old, new, f"their {name} differ")
    _require_same_tensors(old, new)


def _require_same_tensors(old: Release, new: Release) -> None:
    before, after = _tensors(old), _tensors(new)
    if others := sorted(before.keys() ^ after.keys()):
        raise _other(old, new, f"only one of them has the tensor {others[0]}")
    for name, kind in before.items():
        if kind != after[name]:
            raise _other(old, new, f"the tensor {name} is {after[name]} instead of {kind}")


def _other(old: Release, new: Release, how: str) -> Refused:
    return Refused(f"the weights of {new.version} cannot be put into the model of {old.version}: {how}", hint=_HINT)


def _environment(release: Release) -> str | None:
    own = release.path / "env"
    return str(own.resolve()) if own.exists() else None


def _files(release: Release) -> dict[str, str]:
    """Digests of all that is read beside the weights, by name below the checkpoint."""
    found = {}
    for file in release.manifest.files:
        path = PurePosixPath(file.path)
        if path.parts[0] != "model" or path.name.endswith((_WEIGHTS, _INDEX)):
            continue
        if path.suffix.lower() not in _READ_BY_PEOPLE and not path.name.upper().startswith("LICENSE"):
            found[str(PurePosixPath(*path.parts[1:]))] = file.sha256
    return found


def _says_the_same(old: Release, new: Release, name: str) -> bool:
    """Whether two configurations differ in their spelling alone, and in what they tell of their making."""
    if not name.endswith("config.json"):
        return False
    try:
        one, other = (_plain(json.loads((each.path / "model" / name).read_bytes())) for each in (old, new))
    except (OSError, ValueError):
        return False
    return bool(one == other)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if key not in _TOLD}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _tensors(release: Release) -> dict[str, str]:
    """The kind and shape of every tensor, from the heads of the files (8 bytes of length, then JSON)."""
    found: dict[str, str] = {}
    for each in release.manifest.files:
        if not each.path.endswith(_WEIGHTS):
            continue
        try:
            with (release.path / each.path).open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                head = json.loads(file.read(min(length, _LONGEST_HEAD)))
            found |= {name: f"{it['dtype']} {it['shape']}" for name, it in head.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(f"{each.path} of {release.version} is no safetensors file, or its head is damaged") from error
    return found
