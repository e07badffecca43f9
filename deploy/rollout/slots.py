"""The symlinks that are the truth: `blue` and `green` lead to releases, `live` names the slot that serves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from deploy.host import SLOTS, Host


@dataclass(frozen=True)
class Slots:
    """Derived from the links at every question; nothing is remembered."""

    host: Host

    @property
    def live(self) -> str | None:
        """The slot that serves, None on an empty host."""
        name = _readlink(self.host.root / "live")
        return name if name in SLOTS else None

    @property
    def idle(self) -> str:
        """The slot that a rollout may bring up."""
        return "green" if self.live == "blue" else "blue"

    def version(self, slot: str) -> str | None:
        """The version that `slot` points to."""
        target = self.target(slot)
        return Path(target).name if target else None

    def target(self, slot: str) -> str | None:
        """What the slot's symlink says, word for word."""
        return _readlink(self.host.root / slot)

    def point(self, slot: str, target: str | None) -> None:
        """Let `slot` lead to `target` (relative to the root); None takes the link away."""
        link = self.host.root / slot
        if target is None:
            link.unlink(missing_ok=True)
        else:
            _replace(link, target)

    def go_live(self, slot: str) -> None:
        """The cutover: one rename, after which every worker follows by itself."""
        _replace(self.host.root / "live", slot)


def release_target(version: str) -> str:
    """How a slot's symlink names a release."""
    return f"releases/{version}"


def _readlink(path: Path) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115  (word for word)
    except OSError:
        return None


def _replace(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(link)
