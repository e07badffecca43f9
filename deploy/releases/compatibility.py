"""Whether the weights of one release fit the model of another, decided from their files."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from deploy.errors import Refused
from deploy.releases.checkpoint import Tensor, read_tensors
from deploy.releases.store import Release

__all__ = ["require_compatible"]

_PROVENANCE = frozenset({"transformers_version", "_name_or_path", "_commit_hash", "_from_model_config"})
"""Keys of a configuration that name its origin and do not change the model."""
_WEIGHTS, _INDEX, _DOCUMENTATION = ".safetensors", ".safetensors.index.json", {".md", ".png", ".jpg", ".pdf"}


def require_compatible(old: Release, new: Release) -> None:
    """Refuse `new` unless it differs from `old` in the values of its weights alone.

    Compared are the engine settings, the Python environments, every file that is read beside the weights, and the
    names, dtypes and shapes of all tensors. Raises Refused with the first difference.
    """
    if old.manifest.engine != new.manifest.engine:
        raise _incompatible(old, new, "their engine settings differ")
    if _environment(old) != _environment(new):
        raise _incompatible(old, new, "they have different Python environments")
    before, after = _files(old), _files(new)
    if others := sorted(before.keys() ^ after.keys()):
        raise _incompatible(old, new, f"only one of them has {others[0]}")
    for name, digest in before.items():
        if digest != after[name] and not _equal_configuration(old, new, name):
            raise _incompatible(old, new, f"their {name} differ")
    _require_same_tensors(old, new)


def _require_same_tensors(old: Release, new: Release) -> None:
    before, after = _tensors(old), _tensors(new)
    if others := sorted(before.keys() ^ after.keys()):
        raise _incompatible(old, new, f"only one of them has the tensor {others[0]}")
    for name, tensor in before.items():
        if tensor != after[name]:
            raise _incompatible(old, new, f"the tensor {name} is {after[name]} instead of {tensor}")


def _incompatible(old: Release, new: Release, difference: str) -> Refused:
    return Refused(
        f"the weights of {new.version} do not fit the model of {old.version}: {difference}",
        hint="`--strategy overlap` accepts any release",
    )


def _environment(release: Release) -> str | None:
    path = release.path / "env"
    return str(path.resolve()) if path.exists() else None


def _files(release: Release) -> dict[str, str]:
    """Return the digests of the files that a model is built from, weights left out, by name relative to `model/`."""
    found = {}
    for file in release.manifest.files:
        path = PurePosixPath(file.path)
        if path.parts[0] != "model" or path.name.endswith((_WEIGHTS, _INDEX)):
            continue
        if path.suffix.lower() not in _DOCUMENTATION and not path.name.upper().startswith("LICENSE"):
            found[str(PurePosixPath(*path.parts[1:]))] = file.sha256
    return found


def _equal_configuration(old: Release, new: Release, name: str) -> bool:
    """Whether two configuration files are equal as JSON, provenance left out."""
    if not name.endswith("config.json"):
        return False
    try:
        before, after = (
            _without_provenance(json.loads((release.path / "model" / name).read_bytes())) for release in (old, new)
        )
    except (OSError, ValueError):
        return False
    return bool(before == after)


def _without_provenance(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_provenance(inner) for key, inner in value.items() if key not in _PROVENANCE}
    return [_without_provenance(inner) for inner in value] if isinstance(value, list) else value


def _tensors(release: Release) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in release.manifest.files:
        if file.path.endswith(_WEIGHTS):
            found |= read_tensors(release.path / file.path, f"{file.path} of {release.version}")
    return found
