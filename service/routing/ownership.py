"""Who owns the client connections: one look at a few paths, and nothing remembered."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from service.routing.canary import CanaryFile, Side

SLOTS = ("blue", "green")


@dataclass(frozen=True)
class Gate:
    """The gate of one generation: open while `live` leads to the handoff socket that this generation bound.

    `live` names the slot and the slot's `handoff.sock` is always the newest ready generation's, so that one comparison
    of inodes answers for both ways to the next generation: across slots and in place. A generation that is not ready
    has not published its socket, and finds its gate closed.

    While a canary holds, a connection is on one of two sides, drawn anew for every request. What is on the candidate's
    belongs to the slot that the canary names; without a canary both sides are the live slot's.
    """

    root: Path
    runtime: Path
    handoff: tuple[int, int]
    """Device and inode of the handoff socket that this generation bound."""

    def owner(self, side: Side = "live") -> Path | None:
        """The handoff socket to which connections of a side belong now; None while no slot is live."""
        try:
            slot = os.readlink(self.root / "live")  # noqa: PTH115  (a string is what we want)
        except OSError:
            return None
        if side == "candidate" and (canary := self._canary.read()):
            slot = canary.slot
        return self.runtime / slot / "handoff.sock" if slot in SLOTS else None

    def is_open(self, side: Side = "live") -> bool:
        """Whether this generation is the owner. Costs two or three system calls, about 2 µs each."""
        owner = self.owner(side)
        if owner is None:
            return False
        try:
            status = owner.stat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.handoff

    @property
    def own_side(self) -> Side:
        """On which side a connection is that was handed to this generation."""
        return "live" if self.is_open() else "candidate"

    def draw(self) -> Side:
        """Toss for the owner of a connection's next request; where its head will tell, it stays where it is."""
        canary = self._canary.read()
        if canary is None:
            return "live"
        return self.own_side if canary.sticky else canary.toss()

    @property
    def reads_heads(self) -> bool:
        """Whether a request's head may tell whose it is."""
        return self._canary.read() is not None

    def side_of(self, head: bytes | bytearray) -> Side | None:
        """Whose a request is by its head; None where the head does not decide."""
        canary = self._canary.read()
        return canary.side_of(head) if canary else None

    def toss_mirror(self) -> bool:
        """Whether a request is one of those that the candidate is asked too, if it is ours; costs a look at a path."""
        canary = self._canary.read()
        return canary is not None and canary.toss_mirror()

    @property
    def mirror(self) -> Path | None:
        """The candidate's door, while what we answer as the live one is to be asked of it too."""
        canary = self._canary.read()
        if canary is None or not canary.mirror or canary.slot not in SLOTS:
            return None
        if not self.is_open() or self.is_open("candidate"):
            return None
        return self.runtime / canary.slot / "http.sock"

    @cached_property
    def _canary(self) -> CanaryFile:
        return CanaryFile(self.runtime / "canary")
