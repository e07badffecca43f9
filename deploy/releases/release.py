"""A release on this host: its directory and its manifest, `release.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from deploy.errors import Refused

__all__ = ["MANIFEST", "File", "Manifest", "Release", "damaged"]

MANIFEST = "release.json"


class File(BaseModel):
    """One file of a release; `path` is relative to the release directory."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """The content of `release.json`."""

    model_config = ConfigDict(frozen=True)

    version: str
    created_at: str
    files: tuple[File, ...]
    engine: dict[str, Any] = {}
    checks: tuple[dict[str, Any], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Release:
    """A release on this host."""

    path: Path
    manifest: Manifest

    @property
    def version(self) -> str:
        """The name of the release and of its directory."""
        return self.path.name


def damaged(version: str, name: str, fault: str) -> Refused:
    """Return the error for a file of a release that is not as the manifest describes it."""
    return Refused(f"release {version} is damaged: {name}: {fault}", hint="remove it and add it again")
