"""Which generation owns the client connections: derived from a few paths, which are read again every millisecond."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from service.contract.canary_file import Canary, CanaryFile
from service.contract.slots import SLOTS, Slots, handoff_socket, http_socket
from service.routing.canary import Side, pick_mirrored, pick_side, side_by_head

__all__ = ["MAX_AGE", "Gate", "Look"]

MAX_AGE = 0.001  # seconds for which what was read is used again


class Look(NamedTuple):
    """What the paths said at one moment."""

    canary: Canary | None
    owners: Mapping[Side, Path | None]
    """The handoff socket that connections of a side belong to."""
    opened: Mapping[Side, bool]
    """Whether this generation bound that socket."""
    answers_all: bool
    """Whether this generation is live, and there is no canary: every request of a client is answered here."""


@dataclass
class Gate:
    """The gate of one generation: open while `live` leads to the handoff socket that this generation bound.

    `live` names the slot, and the slot's `handoff.sock` is always the newest ready generation's. So one comparison of
    inodes covers both ways to the next generation, across slots and in place. A generation that is not ready has not
    published its socket, and its gate is closed.

    While a canary holds, every request of a client connection is on one of two sides, drawn anew each time. The
    candidate's side belongs to the slot that the canary names; without a canary both sides are the live slot's.

    A look at the paths takes three or four system calls, and serves all requests of the next `max_age` seconds. A busy
    worker would otherwise spend a fifth of its time on them. No notification (inotify) is needed for that, and a
    rename by any program counts.
    """

    root: Path
    runtime: Path
    handoff: tuple[int, int]
    """Device and inode of the handoff socket that this generation bound."""
    max_age: float = MAX_AGE

    def __post_init__(self) -> None:
        self._slots = Slots(self.root)
        self._canary = CanaryFile(self.runtime)
        self._sockets = {slot: handoff_socket(self.runtime, slot) for slot in SLOTS}
        self.look()

    def look(self) -> Look:
        """Read the paths now."""
        self._valid_until = time.monotonic() + self.max_age  # the time before reading: nothing older is used
        canary, live = self._canary.read(), self._slots.live
        candidate = canary.slot if canary and live else live
        owner, other = self._sockets.get(live or ""), self._sockets.get(candidate or "")
        is_open = self._is_bound_here(owner)
        self._found = found = Look(
            canary,
            {"live": owner, "candidate": other},
            {"live": is_open, "candidate": is_open if other is owner else self._is_bound_here(other)},
            answers_all=is_open and canary is None,
        )
        return found

    @property
    def recent(self) -> Look:
        """What the paths said at most `max_age` seconds ago."""
        return self._found if time.monotonic() < self._valid_until else self.look()

    def owner(self, side: Side = "live") -> Path | None:
        """Return the handoff socket that connections of a side belong to; None while no slot is live."""
        return self.recent.owners[side]

    def is_open(self, side: Side = "live") -> bool:
        """Return whether this generation is the owner."""
        return self.recent.opened[side]

    @property
    def own_side(self) -> Side:
        """The side of a connection that was passed to this generation."""
        return "live" if self.is_open() else "candidate"

    def pick_side(self) -> Side:
        """Draw the side of a connection's next request; where its head will decide, the connection stays here."""
        canary = self.recent.canary
        if canary is None:
            return "live"
        return self.own_side if canary.sticky else pick_side(canary)

    @property
    def reads_heads(self) -> bool:
        """Whether the head of a request may decide its side."""
        return self.recent.canary is not None

    def side_by_head(self, head: bytes | bytearray) -> Side | None:
        """Return the side that a request's head chooses; None where the head does not decide."""
        canary = self.recent.canary
        return side_by_head(canary, head) if canary else None

    def pick_mirrored(self) -> bool:
        """Draw whether a request is sent to the candidate too, if this generation is live."""
        canary = self.recent.canary
        return canary is not None and pick_mirrored(canary)

    @property
    def mirror(self) -> Path | None:
        """The candidate's internal socket while requests answered here, as the live slot's, are mirrored to it."""
        canary = self.recent.canary
        if canary is None or not canary.mirror:
            return None
        if not self.is_open() or self.is_open("candidate"):
            return None
        return http_socket(self.runtime, canary.slot)

    def _is_bound_here(self, owner: Path | None) -> bool:
        if owner is None:
            return False
        try:
            status = os.stat(owner)  # noqa: PTH116  (half the time of Path.stat)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.handoff
