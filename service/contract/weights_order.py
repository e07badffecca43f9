"""The file `$RUNTIME/<slot>/<generation>/weights_order.json`: the controller's order to replace a model's weights."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from service.contract import atomic, fields, processes
from service.contract.cached_file import CachedFile
from service.contract.generations import generation_directories
from service.contract.slots import Slots

__all__ = ["Step", "WeightsOrder", "WeightsOrderFile", "own_order", "settle"]

Step = Literal["prepare", "vacate", "verify", "back", "done"]

logger = logging.getLogger("gunicorn.error")

_NAME = "weights_order.json"


@dataclass(frozen=True)
class WeightsOrder:
    """An order to replace the weights of `before` by those of `after`, up to and including `step`.

    The steps are prepare (read the new weights), vacate (block new requests, finish the others), verify (use the new
    weights and run the checks), then done (keep them) or back (restore the old ones).
    """

    id: str
    """The id of the rollout."""
    step: Step
    before: str
    after: str
    workers: tuple[int, ...]
    """The pids of the workers that carry it out."""
    controller: int
    """The pid of the process that wrote it."""
    start_ticks: int
    """With `controller` it identifies that process; clock ticks since boot."""
    seconds: float
    """The longest time that requests may wait."""


class WeightsOrderFile:
    """The order to one generation, and which weights it decides for.

    The slot's symlink decides: once it leads to `after`, the new weights are kept. If the controller dies before that,
    the old ones are restored.
    """

    def __init__(self, root: Path, slot: str, directory: Path) -> None:
        self.slots = Slots(root)
        self.slot = slot
        self.path = directory / _NAME
        self._file = CachedFile(self.path, self.parse, self._log)

    def read(self) -> WeightsOrder | None:
        """Return the current order; None without one, or if it cannot be parsed. One stat unless it was replaced."""
        return self._file.read()

    @staticmethod
    def parse(text: bytes) -> WeightsOrder:
        """Parse the content of the file; raises ValueError."""
        order = fields.from_json(WeightsOrder, text)
        if order.seconds < 0:
            raise ValueError(f"seconds is {order.seconds:g}")
        for version in (order.before, order.after):
            if version in {"", ".", ".."} or "/" in version:
                raise ValueError(f"{version[:100]!r} is not a version")
        return order

    def _log(self, error: Exception) -> None:
        logger.error("%s is ignored, the weights stay as they are: %s", self.path, error)

    def write(self, order: WeightsOrder) -> None:
        """Replace the order; workers follow within milliseconds. Raises OSError."""
        atomic.write_text(self.path, json.dumps(asdict(order)))

    def verdict(self, order: WeightsOrder) -> bool | None:
        """Return True if the new weights are kept, False if the old ones are, None while that is undecided."""
        if order.step == "back":
            return False
        if order.step == "done" or self._slot_has(order.after):
            return True
        if not processes.is_alive(order.controller, order.start_ticks):
            return self._slot_has(order.after)  # read again: the controller may have renamed the link before it died
        return None

    def version(self, otherwise: str) -> str:
        """Return the version whose weights a worker of this generation should use; `otherwise` without an order."""
        order = self.read()
        if order is None:
            return otherwise
        return order.after if self.verdict(order) else order.before

    def _slot_has(self, version: str) -> bool:
        return self.slots.version(self.slot) == version


def own_order(
    *,
    id: str,  # noqa: A002
    before: str,
    after: str,
    workers: tuple[int, ...],
    seconds: float,
) -> WeightsOrder:
    """Return an order whose controller is the calling process, at its first step."""
    pid = os.getpid()
    ticks = processes.own_start_ticks() or 0
    return WeightsOrder(id, "prepare", before, after, workers, pid, ticks, seconds)


def settle(root: Path, runtime: Path, slot: str, id: str, step: Literal["back", "done"]) -> None:  # noqa: A002
    """Set the last step of an order whose controller died, so that it does not depend on the symlink any more."""
    for directory in generation_directories(runtime, slot):
        file = WeightsOrderFile(root, slot, directory)
        order = file.read()
        if order is not None and order.id == id:
            file.write(replace(order, step=step))
