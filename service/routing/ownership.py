"""The gate: which generation owns the client connections, derived from a few paths each time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from service.contract.canary_file import CanaryFile
from service.contract.slots import Slots, handoff_socket, http_socket
from service.routing.canary import Side, pick_mirrored, pick_side, side_by_head

__all__ = ["Gate"]


@dataclass(frozen=True)
class Gate:
    """The gate of one generation: open while `live` leads to the handoff socket that this generation bound.

    `live` names the slot, and the slot's `handoff.sock` is that of its newest ready generation. One comparison of
    inodes therefore covers a cutover to the other slot and a reload in place. The gate of a generation that is not
    ready is closed, because its socket is not published.

    During a canary every request of a client connection is on one of two sides, picked for each request. The candidate
    side belongs to the slot that the canary names; without a canary both sides belong to the live slot.
    """

    root: Path
    runtime: Path
    handoff: tuple[int, int]
    """Device and inode of the handoff socket that this generation bound."""

    def owner(self, side: Side = "live") -> Path | None:
        """Return the path of the handoff socket of the side's owner; None while no slot is live."""
        slot = self._slots.live
        if slot is None:
            return None
        if side == "candidate" and (canary := self._canary.read()):
            slot = canary.slot
        return handoff_socket(self.runtime, slot)

    def is_open(self, side: Side = "live") -> bool:
        """Return whether this generation is the side's owner. Costs two or three system calls of about 2 µs."""
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
        """The side of the connections that other generations pass to this one."""
        return "live" if self.is_open() else "candidate"

    def pick_side(self) -> Side:
        """Pick the side of a connection's next request. If its head will decide (sticky), the connection stays here."""
        canary = self._canary.read()
        if canary is None:
            return "live"
        return self.own_side if canary.sticky else pick_side(canary)

    @property
    def reads_heads(self) -> bool:
        """Whether the head of a request may decide its side: during a canary."""
        return self._canary.read() is not None

    def side_by_head(self, head: bytes | bytearray) -> Side | None:
        """Return the side that the head of a request decides for; None if it does not decide."""
        canary = self._canary.read()
        return side_by_head(canary, head) if canary else None

    def pick_mirrored(self) -> bool:
        """Pick at random whether a request is mirrored."""
        canary = self._canary.read()
        return canary is not None and pick_mirrored(canary)

    @property
    def mirror(self) -> Path | None:
        """The candidate's internal socket; None unless this generation is live and there is a mirror."""
        canary = self._canary.read()
        if canary is None or not canary.mirror:
            return None
        if not self.is_open() or self.is_open("candidate"):
            return None
        return http_socket(self.runtime, canary.slot)

    @cached_property
    def _canary(self) -> CanaryFile:
        return CanaryFile(self.runtime)

    @cached_property
    def _slots(self) -> Slots:
        return Slots(self.root)
