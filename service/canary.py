"""The canary: which share of the clients' requests the candidate answers before it is live."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Canary", "CanaryFile", "Side"]

logger = logging.getLogger("gunicorn.error")

Side = Literal["live", "candidate"]


@dataclass(frozen=True)
class Canary:
    """The candidate's slot, and its share of the requests in percent."""

    slot: str
    weight: float


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
            return Canary(str(document["slot"]), float(document["weight"]))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.error("%s makes no sense, live alone rules: %r", self.path, error)  # noqa: TRY400
            return None
