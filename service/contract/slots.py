"""The slots: the symlinks that decide what is served, and the paths under the runtime directory.

`$ROOT/live` is a symlink to `blue` or `green`; `$ROOT/blue` and `$ROOT/green` are symlinks to `releases/<version>`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from service.contract import atomic

__all__ = [
    "SLOTS",
    "Slots",
    "generation_directory",
    "handoff_socket",
    "http_socket",
    "release_target",
]

SLOTS = ("blue", "green")


@dataclass(frozen=True)
class Slots:
    """The symlinks in `root`; every access reads them anew."""

    root: Path

    @property
    def live(self) -> str | None:
        """The slot that serves; None on an empty host."""
        name = _readlink(f"{self.root}/live")
        return name if name in SLOTS else None

    @property
    def fault(self) -> str | None:
        """What is wrong with `live`: it exists, and is no symlink to a slot. None if it is one, or is absent."""
        path = self.root / "live"
        if self.live is not None or not os.path.lexists(path):
            return None
        target = _readlink(path)
        return "is not a symlink" if target is None else f"leads to {target[:100]!r}, which is not a slot"

    @property
    def idle(self) -> str:
        """The slot that is not live."""
        return "green" if self.live == "blue" else "blue"

    def version(self, slot: str) -> str | None:
        """Return the version that the slot's symlink leads to."""
        target = self.target(slot)
        return target.rpartition("/")[2] if target else None

    def target(self, slot: str) -> str | None:
        """Return the target of the slot's symlink, as it is stored."""
        return _readlink(self.root / slot)

    def point(self, slot: str, target: str | None) -> None:
        """Point the slot's symlink to `target`, relative to the root; None removes it."""
        if target is None:
            atomic.remove(self.root / slot)
        else:
            atomic.replace_symlink(self.root / slot, target)

    def go_live(self, slot: str | None) -> None:
        """Point `live` to the slot, by one rename: the cutover. Every worker follows it. None removes `live`."""
        if slot is None:
            atomic.remove(self.root / "live")
        else:
            atomic.replace_symlink(self.root / "live", slot)


def release_target(version: str) -> str:
    """Return the target of a slot's symlink to the release of `version`."""
    return f"releases/{version}"


def http_socket(runtime: Path, slot: str) -> Path:
    """Return the slot's internal HTTP socket: it leads to the newest ready generation, gate open or closed."""
    return runtime / slot / "http.sock"


def handoff_socket(runtime: Path, slot: str) -> Path:
    """Return the slot's socket for client connections: it leads to the newest ready generation."""
    return runtime / slot / "handoff.sock"


def generation_directory(runtime: Path, slot: str, generation: int) -> Path:
    """Return the directory of the state files of a generation and its workers."""
    return runtime / slot / str(generation)


def _readlink(path: str | Path) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115  (a string is wanted, not a path)
    except OSError:
        return None
