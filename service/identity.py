"""The identity of a worker's release, as responses report it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Identity"]


@dataclass
class Identity:
    """The release's version, the slot, and the number of the generation in the slot.

    `version` is that of the weights which the model holds now, and changes with them. The version that answers a
    request is on its admission ticket.
    """

    version: str
    slot: str
    generation: int
