"""The file `$RUNTIME/<slot>/<generation>/weights_order.json`: an order to replace the weights of a running model."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from service.contract import atomic, fields, processes
from service.contract.cached_file import CachedFile
from service.contract.slots import Slots

__all__ = ["Step", "WeightsOrder", "WeightsOrderFile", "own_order", "settle"]

Step = Literal["prepare", "vacate", "verify", "back", "done"]

_NAME = "weights_order.json"


@dataclass(frozen=True)
class WeightsOrder:
    """Replace the weights of `before` by those of `after`, as far as `step`.

    The steps are prepare (read the new weights), vacate (block new requests, finish the others), verify (use the new
    weights and run the checks), then done or back.
    """

    id: str
    """The rollout's."""
    step: Step
    before: str
    after: str
    workers: tuple[int, ...]
    """The pids that it is for."""
    controller: int
    """The pid of the process that wrote it."""
    start_ticks: int
    """With `controller` it identifies that process; clock ticks since boot."""
    seconds: float
    """How long a request may wait."""


class WeightsOrderFile:
    """The order to one generation.

    The slot's symlink decides: once it leads to `after`, the new weights hold. Until then the old ones do, and for good
    when the controller has died.
    """

    def __init__(self, root: Path, slot: str, directory: Path) -> None:
        self.slots = Slots(root)
        self.slot = slot
        self.path = directory / _NAME
        self._file = CachedFile(self.path, lambda text: fields.from_json(WeightsOrder, text))

    def read(self) -> WeightsOrder | None:
        """Return the order that holds now; one stat unless the file was replaced. An unreadable file is no order."""
        return self._file.read()

    def write(self, order: WeightsOrder) -> None:
        """Replace the order; workers follow within milliseconds. Raises OSError."""
        atomic.write_text(self.path, json.dumps(asdict(order)))

    def verdict(self, order: WeightsOrder) -> bool | None:
        """Return True when the new weights hold for good, False when the old ones do, None while that is open."""
        if order.step == "back":
            return False
        if order.step == "done" or self._holds(order.after):
            return True
        if not processes.is_alive(order.controller, order.start_ticks):
            return self._holds(order.after)  # read again: the controller may have renamed the link before it died
        return None

    def version(self, otherwise: str) -> str:
        """Return the version that a worker of this generation should hold; `otherwise` without an order."""
        order = self.read()
        if order is None:
            return otherwise
        return order.after if self.verdict(order) else order.before

    def _holds(self, version: str) -> bool:
        return self.slots.version(self.slot) == version


def own_order(
    *,
    id: str,  # noqa: A002
    before: str,
    after: str,
    workers: tuple[int, ...],
    seconds: float,
) -> WeightsOrder:
    """Return an order of the calling process, at its first step."""
    pid = os.getpid()
    ticks = processes.own_start_ticks() or 0
    return WeightsOrder(id, "prepare", before, after, workers, pid, ticks, seconds)


def settle(root: Path, runtime: Path, slot: str, id: str, step: Literal["back", "done"]) -> None:  # noqa: A002
    """Set the last step of an order whose controller died, so that workers need not look any further."""
    for path in (runtime / slot).glob(f"[0-9]*/{_NAME}"):
        file = WeightsOrderFile(root, slot, path.parent)
        order = file.read()
        if order is not None and order.id == id:
            file.write(replace(order, step=step))
