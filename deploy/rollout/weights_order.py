"""The order to the workers of one generation to hold other weights; the server's own says how they follow it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.host import Host
from deploy.journal.accounts import Generation, birth

__all__ = ["Order", "settle"]

Step = Literal["prepare", "vacate", "verify", "back", "done"]

_NAME = "change.json"


@dataclass(frozen=True)
class Order:
    """Change from the version `before` to `after`; no request may be made to wait for it longer than `seconds`."""

    path: Path
    id: str
    before: str
    after: str
    workers: tuple[int, ...]
    seconds: float

    @classmethod
    def to(cls, host: Host, one: Generation, *, id: str, after: str, seconds: float) -> Order:  # noqa: A002
        """An order to the workers that the generation has now."""
        path = host.runtime / one.slot / str(one.generation) / _NAME
        return cls(path, id, one.version, after, tuple(worker.pid for worker in one.living), seconds)

    def give(self, step: Step) -> None:
        """Take the order so far. Workers follow within milliseconds, and keep the old weights if we die."""
        pid = os.getpid()
        document = {
            "id": self.id,
            "step": step,
            "before": self.before,
            "after": self.after,
            "workers": self.workers,
            "controller": pid,
            "born": birth(pid),
            "seconds": self.seconds,
        }
        _replace(self.path, document)


def settle(host: Host, slot: str, id: str, step: Literal["back", "done"]) -> None:  # noqa: A002
    """Say how an order of a controller that died has ended, so that no worker need look any further."""
    for path in (host.runtime / slot).glob(f"[0-9]*/{_NAME}"):
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if document.get("id") == id:
            _replace(path, document | {"step": step})


def _replace(path: Path, document: dict[str, object]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(document))
    temporary.replace(path)
