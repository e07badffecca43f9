"""Who answers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Identity"]


@dataclass
class Identity:
    """The release's version, the slot, and the number of the generation in it.

    The version is that of the weights which the model holds now, and changes with them. Who needs to know which version
    answered a request asks its passage through the turnstile.
    """

    version: str
    slot: str
    generation: int
