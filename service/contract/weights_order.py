"""The controller's word that a generation is to hold other weights, and what it means at any moment."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from service.contract.processes import lives

__all__ = ["Order", "Orders", "Step"]

Step = Literal["prepare", "vacate", "verify", "back", "done"]


@dataclass(frozen=True)
class Order:
    """Change from the version `before` to `after`, as far as `step`. It holds for the `workers` named, by their pids.

    The process that gave it is the `controller`, `born` then (clock ticks since boot). No request may be made to wait
    for longer than `seconds`.
    """

    id: str
    step: Step
    before: str
    after: str
    workers: frozenset[int]
    controller: int
    born: int
    seconds: float


@dataclass
class Orders:
    """`<runtime>/<slot>/<generation>/change.json`, replaced by rename.

    The slot's symlink decides: from its rename on the new weights hold, and who did not see it happen finds it. Until
    then the old ones do, and if the controller is dead they do for good.
    """

    root: Path
    slot: str
    path: Path
    _seen: tuple[int, int] | None = field(default=None, init=False)
    _order: Order | None = field(default=None, init=False)

    def read(self) -> Order | None:
        """Tell what is wanted now; one system call unless the file is another. What makes no sense is no order."""
        try:
            status = self.path.stat()
            seen = (status.st_ino, status.st_mtime_ns)
            if seen != self._seen:
                self._order, self._seen = _parse(json.loads(self.path.read_bytes())), seen
        except FileNotFoundError:
            self._order, self._seen = None, None
        except (OSError, ValueError, KeyError, TypeError):
            self._order = None
        return self._order

    def verdict(self, order: Order) -> bool | None:
        """Whether the new weights hold for good, or the old ones; None while that is open."""
        if order.step == "back":
            return False
        if order.step == "done" or self._linked == order.after:
            return True
        if not lives(order.controller, order.born):
            return self._linked == order.after  # it may have been its last deed
        return None

    def version(self, otherwise: str) -> str:
        """The version that a worker of this generation should hold; `otherwise` without any order."""
        order = self.read()
        if order is None:
            return otherwise
        return order.after if self.verdict(order) else order.before

    @property
    def _linked(self) -> str | None:
        try:
            return Path(os.readlink(self.root / self.slot)).name  # noqa: PTH115  (a string is what we want)
        except OSError:
            return None


def _parse(document: dict[str, Any]) -> Order:
    return Order(
        str(document["id"]),
        document["step"],
        str(document["before"]),
        str(document["after"]),
        frozenset(map(int, document["workers"])),
        int(document["controller"]),
        int(document["born"]),
        float(document["seconds"]),
    )
