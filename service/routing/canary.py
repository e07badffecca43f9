"""The canary: which share of the clients' requests the candidate answers before it is live."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from service.routing.head import header

__all__ = ["Canary", "CanaryFile", "Side"]

logger = logging.getLogger("gunicorn.error")

Side = Literal["live", "candidate"]

PIN = "x-glm-slot"  # the header by which a client chooses a side


@dataclass(frozen=True)
class Canary:
    """The candidate's slot, and its share of the requests in percent.

    With `sticky`, the name of a header, requests with the same value of it stay on one side for the length of a step.
    """

    slot: str
    weight: float
    step: int = 0
    sticky: str | None = None
    mirror: float = 0.0
    """Of the requests that the live slot answers, the share in percent that the candidate is asked too."""

    def toss(self) -> Side:
        """Whose a request is."""
        return "candidate" if random.random() * 100 < self.weight else "live"  # noqa: S311  # a share, no secret

    def toss_mirror(self) -> bool:
        """Whether the candidate is to be asked too."""
        return random.random() * 100 < self.mirror  # noqa: S311

    def side_of(self, head: bytes | bytearray) -> Side | None:
        """Whose a request is by its head; None where the head does not decide."""
        pinned = header(head, PIN)
        if pinned in ("live", "candidate"):
            return "live" if pinned == "live" else "candidate"
        if self.sticky is None:
            return None
        key = header(head, self.sticky)
        if key is None:
            return self.toss()
        digest = hashlib.blake2b(f"{self.step} {key}".encode(), digest_size=8).digest()
        return "candidate" if int.from_bytes(digest) * 100 < self.weight * 2**64 else "live"


@dataclass
class CanaryFile:
    """`<runtime>/canary`, replaced by rename by whoever rolls out, and gone after a reboot: then `live` alone rules."""

    path: Path
    _seen: tuple[int, int] | None = field(default=None, init=False)
    _canary: Canary | None = field(default=None, init=False)

    def read(self) -> Canary | None:
        """Tell what holds now; one system call unless the file is another. What makes no sense is no canary."""
        try:
            status = self.path.stat()
            seen = (status.st_ino, status.st_mtime_ns)
            if seen != self._seen:
                self._canary, self._seen = self._parse(), seen
        except FileNotFoundError:
            self._canary, self._seen = None, None
        return self._canary

    def _parse(self) -> Canary | None:
        try:
            document = json.loads(self.path.read_bytes())
            sticky = document.get("sticky")
            return Canary(
                str(document["slot"]),
                float(document["weight"]),
                int(document.get("step", 0)),
                str(sticky).lower() if sticky else None,
                float(document.get("mirror", 0)),
            )
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.error("%s makes no sense, live alone rules: %r", self.path, error)  # noqa: TRY400
            return None
