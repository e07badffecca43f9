"""The file `$RUNTIME/canary`: the share of the requests that the candidate answers before it is live."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from service.contract import atomic, fields
from service.contract.cached_file import CachedFile
from service.contract.slots import SLOTS

__all__ = ["HEADER", "Canary", "CanaryFile"]

logger = logging.getLogger("gunicorn.error")

_WHOLE = 100  # percent
HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
"""The name of a header: a token of RFC 9110."""


@dataclass(frozen=True)
class Canary:
    """One canary step."""

    slot: str
    """The slot of the candidate."""
    weight: float
    """Percent of the requests that the candidate answers."""
    step: int = 0
    """Counted from 1."""
    sticky: str | None = None
    """The name of a header: requests with the same value of it stay on one side for the length of a step."""
    promoted: bool = False
    """The operator has ended the step early; the rollout goes on to the next one."""
    mirror: float = 0.0
    """Percent of the live slot's requests that are sent to the candidate too."""


class CanaryFile:
    """The file is absent while there is no canary, and after a reboot.

    It is written by the rollout and by `promote`, and removed by `abort` and at the cutover. A file that cannot be
    parsed counts as no canary: all requests go to the live slot then.
    """

    def __init__(self, runtime: Path) -> None:
        self.path = runtime / "canary"
        self._file = CachedFile(self.path, self.parse, self._log)

    def read(self) -> Canary | None:
        """Return the current canary; one stat unless the file was replaced."""
        return self._file.read()

    def write(self, canary: Canary) -> None:
        """Begin a step; raises OSError."""
        atomic.write_text(self.path, json.dumps(asdict(canary)))

    def promote(self) -> Canary | None:
        """End the current step early, and return it; None without a canary."""
        canary = self.read()
        if canary is not None:
            self.write(replace(canary, promoted=True))
        return canary

    def remove(self) -> Canary | None:
        """End the canary now, and return it; None without one."""
        canary = self.read()
        self.path.unlink(missing_ok=True)
        return canary

    @staticmethod
    def parse(text: bytes) -> Canary:
        """Parse the content of the file; raises ValueError."""
        canary = fields.from_json(Canary, text)
        if canary.slot not in SLOTS:
            raise ValueError(f"slot is {canary.slot[:100]!r}")
        for name in ("weight", "mirror"):
            if not 0 <= getattr(canary, name) <= _WHOLE:
                raise ValueError(f"{name} is {getattr(canary, name):g}, not a share in percent")
        if canary.sticky is not None and not HEADER.fullmatch(canary.sticky):
            raise ValueError(f"sticky is {canary.sticky[:100]!r}, not the name of a header")
        return replace(canary, sticky=canary.sticky.lower() if canary.sticky else None)

    def _log(self, error: Exception) -> None:
        logger.error("%s is ignored, requests go to the live slot alone: %s", self.path, error)
