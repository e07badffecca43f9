"""Stamps: the releases that were compared with their digests, and what their files were like then.

While the files of a release are as its stamp describes them, they need not be hashed again. A write to a file, and any
change of its mode, owner or times, sets its change time, which no call can set to a chosen value. Damage to the disk
itself is not seen: `glmctl release verify` always hashes.

Stamps are in `$STATE/verified`, which belongs to root, as the releases do. One that another user could have written is
ignored.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from deploy.host import Host
from deploy.releases.release import MANIFEST, Release
from service.contract import atomic, directories, regular_file

__all__ = ["FileState", "Stamps", "States", "states"]

_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class FileState(BaseModel):
    """What changes with a file; times are in nanoseconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    device: int
    inode: int
    mode: int
    owner: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Return the state of a file, symlinks not followed; raises OSError."""
        found = path.lstat()
        return cls(
            device=found.st_dev,
            inode=found.st_ino,
            mode=found.st_mode,
            owner=found.st_uid,
            size=found.st_size,
            modified=found.st_mtime_ns,
            changed=found.st_ctime_ns,
        )

    @property
    def is_fixed(self) -> bool:
        """Whether it is a regular file that nobody but root may open for writing."""
        return stat.S_ISREG(self.mode) and not self.mode & _WRITABLE


States = dict[str, FileState]
"""By path relative to the release directory."""


def states(release: Release) -> States:
    """Return the states of the manifest and of all files that it names; a file that is missing is left out."""
    found = {}
    for name in (MANIFEST, *(file.path for file in release.manifest.files)):
        with suppress(OSError):
            found[name] = FileState.of(release.path / name)
    return found


class _Stamp(BaseModel):
    version: str
    files: States


@dataclass(frozen=True)
class Stamps:
    """The stamps of one host."""

    host: Host

    def hold(self, release: Release) -> bool:
        """Return whether the release was compared with its digests, and has not changed since."""
        stamp = self._read(release.version)
        return stamp is not None and stamp.version == release.version and stamp.files == states(release)

    def write(self, release: Release, compared: States) -> None:
        """Record that the files, whose states were `compared` before they were read, match their digests.

        Nothing is recorded if one is writable, or if the stamp cannot be written: then the files are compared again.
        """
        if all(one.is_fixed for one in compared.values()):
            with suppress(OSError):
                self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
                stamp = _Stamp(version=release.version, files=compared)
                atomic.write_text(self._path(release.version), stamp.model_dump_json())

    def remove(self, version: str) -> None:
        """Remove the stamp of a release."""
        with suppress(OSError):
            atomic.remove(self._path(version))

    @property
    def _directory(self) -> Path:
        return self.host.state / "verified"

    def _path(self, version: str) -> Path:
        return self._directory / f"{version}.json"

    def _read(self, version: str) -> _Stamp | None:
        try:
            with directories.opened(self._directory) as directory:
                if not _is_own(os.fstat(directory)):
                    return None
            with os.fdopen(regular_file.open_for_reading(self._path(version)), "rb") as file:
                if not _is_own(os.fstat(file.fileno())):
                    return None
                return _Stamp.model_validate_json(file.read(regular_file.LIMIT))
        except (OSError, ValidationError):
            return None


def _is_own(status: os.stat_result) -> bool:
    """Return whether nobody but the calling user, root on a host of the system manager, could have written it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
