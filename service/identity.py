"""Who answers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Identity"]


@dataclass(frozen=True)
class Identity:
    """The release's version, the slot, and the number of the generation in it."""

    version: str
    slot: str
    generation: int
