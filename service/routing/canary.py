"""Which side answers a request during a canary: picked at random, or by a header of the request."""

from __future__ import annotations

import hashlib
import random
from typing import Literal

from service.contract.canary_file import Canary

__all__ = ["PIN", "SIDES", "Side", "pick_mirrored", "pick_side", "side_by_head"]

Side = Literal["live", "candidate"]

PIN = "x-glm-slot"  # a client chooses the side with this header
SIDES: tuple[Side, Side] = ("live", "candidate")


def pick_side(canary: Canary) -> Side:
    """Pick the side of a request at random: the candidate with the probability of the canary's weight."""
    return "candidate" if random.random() * 100 < canary.weight else "live"  # noqa: S311  # no secret


def pick_mirrored(canary: Canary) -> bool:
    """Pick at random whether a request is sent to the candidate too."""
    return random.random() * 100 < canary.mirror  # noqa: S311


def side_by_head(canary: Canary, head: bytes | bytearray) -> Side | None:
    """Return the side that a request's head decides for, pinned or sticky; None if the head does not decide."""
    pinned = _header(head, PIN)
    if pinned in SIDES:
        return "live" if pinned == "live" else "candidate"
    if canary.sticky is None:
        return None
    key = _header(head, canary.sticky)
    if key is None:
        return pick_side(canary)
    digest = hashlib.blake2b(f"{canary.step} {key}".encode(), digest_size=8).digest()
    return "candidate" if int.from_bytes(digest) * 100 < canary.weight * 2**64 else "live"


def _header(data: bytes | bytearray, name: str) -> str | None:
    """Return the value of the first header of that name (lower case); None without one."""
    for line in bytes(data).partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name.encode():
            return value.strip().decode("latin-1")
    return None
