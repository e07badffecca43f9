"""Shared by the tests of releases and units: the paths of a host, and the smallest checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.host import Host


def host_in(directory: Path, *, user: bool = True) -> Host:
    """Return a host whose paths are all below `directory`."""
    return Host(
        user=user,
        root=directory / "root",
        runtime=directory / "run",
        state=directory / "state",
        units=directory / "units",
        settings=directory / "glm.env",
    )


def safetensors(size: int = 8, **entry: object) -> bytes:
    """Return a safetensors file with one tensor of `size` bytes; `entry` replaces fields of its header entry."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]} | entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def make_checkpoint(directory: Path) -> Path:
    """Create the smallest checkpoint that can be imported, and return its directory."""
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(safetensors())
    return directory


def staging_directories(host: Host) -> list[str]:
    """Return the names of the imports that were begun and not published."""
    return [path.name for path in host.releases.glob(".*")] if host.releases.exists() else []
