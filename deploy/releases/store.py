"""The releases of a host: immutable directories, each with a checkpoint and its `release.json`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from deploy.errors import GlmError, Refused
from deploy.host import Host
from deploy.journal.journal import Journal
from deploy.releases import digests
from deploy.releases.checkpoint import check_images, checkpoint_files, read_checks, read_engine
from deploy.releases.digests import Advance
from deploy.releases.environments import Environment
from deploy.releases.release import MANIFEST, File, Manifest, Release
from deploy.releases.stamps import Stamps, states
from service.contract import atomic, operations, regular_file, versions
from service.contract.generations import all_generations
from service.contract.slots import SLOTS, Slots

__all__ = ["Advance", "File", "Manifest", "Release", "Releases"]

_VERSION = re.compile(operations.VERSION)
_RESERVE = 64 << 20  # bytes that must stay free for journals and state files
_STAGING = ".incoming-"


@dataclass(frozen=True)
class Releases:
    """The releases of one host."""

    host: Host

    def list(self) -> list[Release]:
        """Return all releases, in the order of `service.contract.versions`; what is not a release is skipped.

        Those whose name has no number are in the order of their import.
        """
        found = []
        for path in self.host.releases.glob("[!.]*"):
            with contextlib.suppress(GlmError):
                found.append(self._read(path))
        found.sort(key=lambda release: release.manifest.created_at)
        return sorted(found, key=lambda release: versions.order(release.version))

    def get(self, version: str) -> Release:
        """Return the release `version`; raises Refused if it does not exist or its `release.json` is damaged."""
        return self._read(self._path(version))

    def _path(self, version: str) -> Path:
        if not (_VERSION.fullmatch(version) and (self.host.releases / version).is_dir()):
            known = ", ".join(release.version for release in self.list()) or "none"
            raise Refused(
                f"there is no release {version}",
                hint=f"existing releases: {known}; `glmctl release add PATH` imports one",
            )
        return self.host.releases / version

    def slots_of(self, version: str) -> tuple[str, ...]:
        """Return the slots whose symlinks lead to `version`."""
        return tuple(slot for slot in SLOTS if Slots(self.host.root).version(slot) == version)

    @property
    def stamps(self) -> Stamps:
        """Which releases were compared with their digests."""
        return Stamps(self.host)

    def verify(self, version: str, advance: Advance = lambda _: None) -> Release:
        """Compare every file of `version` with its digest; raises Refused with one that differs."""
        release = self.get(version)
        before = states(release)
        digests.compare(release, advance)
        self.stamps.write(release, before)
        return release

    def ensure(self, version: str) -> None:
        """The same, but only if the files may have changed since they were compared last; raises Refused."""
        if not self.stamps.hold(self.get(version)):
            self.verify(version)

    def remove(self, version: str) -> None:
        """Delete `version`, damaged or not.

        Raises Refused while a slot leads to it, a living generation serves it, or an unfinished rollout names it.
        """
        path = self._path(version)
        if slots := self.slots_of(version):
            raise Refused(f"{version} is in use: slot {' and '.join(slots)} leads to it")
        if any(one.is_alive and one.version == version for one in all_generations(self.host.runtime)):
            raise Refused(f"{version} is in use: a generation still serves it")
        if any(one.version == version for one in Journal(self.host).unfinished()):
            raise Refused(f"{version} is in use: a rollout of it is under way")
        removed = self.host.releases / f"{_STAGING}removed-{version}-{os.getpid()}"
        with _locked(path):  # the lock survives the rename, so that no other call deletes the directory meanwhile
            path.rename(removed)
            self.stamps.remove(version)
            _delete(removed)

    def prune(self, keep: int) -> tuple[str, ...]:
        """Remove all but the last `keep` releases of the list and those in use; returns the removed versions."""
        removed = []
        for release in self.list()[: -keep or None]:
            with contextlib.suppress(Refused):
                self.remove(release.version)
                removed.append(release.version)
        return tuple(removed)

    def add(
        self,
        source: Path,
        *,
        version: str | None = None,
        checks: Path | None = None,
        engine: Path | None = None,
        environment: Environment | None = None,
        begin: Callable[[int], Advance] = lambda _: lambda _: None,
    ) -> Release:
        """Import the checkpoint directory `source`: copy and hash its files, then publish the release by one rename.

        The release runs in `environment`, if it is given, whose vLLM must have the arguments of the engine settings.
        `begin` is called once with the total size in bytes and returns the progress callback. An interrupted import
        publishes nothing; the next call deletes what it left. Raises Refused for an invalid version, checkpoint, checks
        file or settings file, and GlmError if the copy fails.
        """
        version = version or source.resolve().name
        if not _VERSION.fullmatch(version):
            raise Refused(
                f"{version!r} is not a valid version", hint="use letters, digits and . _ + -; --version sets it"
            )
        final = self.host.releases / version
        if final.exists():
            raise Refused(f"release {version} exists", hint="a release is immutable: choose another --version")
        settings = read_engine(engine or source / "engine.json", environment, required=engine is not None)
        files = list(checkpoint_files(source, quantised=settings.get("engine") == "vllm"))
        total = sum(path.stat().st_size for path, _ in files)
        self._require_space(total)
        checks_file = checks or source / "checks.json"
        release_checks = read_checks(checks_file, required=checks is not None)
        with self._staging(version) as staging:
            advance = begin(total)
            entries = digests.copy([(path, f"model/{name}") for path, name in files], staging, advance)
            images = check_images(release_checks, checks_file.parent)
            entries += digests.copy(list(images), staging, lambda _: None)
            manifest = Manifest(
                version=version,
                created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                files=tuple(entries),
                engine=settings,
                checks=release_checks,
            )
            atomic.write_text(staging / MANIFEST, manifest.model_dump_json(indent=2), durable=True)
            for directory in (staging, *(path for path in staging.rglob("*") if path.is_dir())):
                atomic.sync_directory(directory)
            if environment:
                (staging / "env").symlink_to(environment.path)
                atomic.sync_directory(staging)
            _seal(staging)
            try:
                staging.rename(final)
            except OSError as error:
                raise Refused(f"release {version} exists", hint="another process has just added it") from error
            atomic.sync_directory(self.host.releases)
        added = Release(final, manifest)
        self.stamps.write(added, states(added))
        return added

    def _read(self, path: Path) -> Release:
        try:
            return Release(path, Manifest.model_validate_json(regular_file.read(path / MANIFEST)))
        except (OSError, ValidationError) as error:
            raise Refused(f"{path} is not a release: its release.json is missing or damaged") from error

    def _require_space(self, total: int) -> None:
        try:
            self.host.releases.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GlmError(
                f"cannot write to {self.host.releases}: {error.strerror}", hint="run it as root, or with --user"
            ) from error
        free = shutil.disk_usage(self.host.releases).free
        if free < total + _RESERVE:
            raise Refused(
                f"not enough disk space for {self.host.releases}: {_mib(total + _RESERVE)} needed, {_mib(free)} free",
                hint="`glmctl release prune --keep 2` removes old releases",
            )

    @contextlib.contextmanager
    def _staging(self, version: str) -> Iterator[Path]:
        """Create a staging directory, locked while it is in use; delete those whose process has ended."""
        for directory in self.host.releases.glob(f"{_STAGING}*"):
            with _locked(directory) as acquired:
                if acquired:
                    _delete(directory)
        staging = self.host.releases / f"{_STAGING}{version}-{os.getpid()}"
        staging.mkdir()
        with _locked(staging):
            try:
                yield staging
            finally:
                if staging.exists():
                    _delete(staging)


def _seal(directory: Path) -> None:
    """Remove all write permissions: running models map these files. Who may read them is the umask's matter."""
    for path in [*directory.rglob("*"), directory]:
        if not path.is_symlink():  # its environment is not a part of it
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)


def _delete(directory: Path) -> None:
    for path in [directory, *directory.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(stat.S_IRWXU)
    shutil.rmtree(directory)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Hold an exclusive lock on `directory`; yields False if it is gone or another process holds the lock."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
