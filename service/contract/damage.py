"""Files of the contract that cannot be read. Every reader treats them as absent; `glmctl doctor` names them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from service.contract import fields, regular_file, rollout_report, samples
from service.contract.canary_file import CanaryFile
from service.contract.generations import WORKER_FILES, Generation, generation_directories
from service.contract.slots import SLOTS, Slots, handoff_socket, http_socket
from service.contract.successor import Successor
from service.contract.weights_order import WeightsOrderFile
from service.contract.worker_state import WorkerState

__all__ = ["Damage", "damaged"]


@dataclass(frozen=True)
class Damage:
    """A file that cannot be read as what it should be."""

    path: Path
    reason: str


def damaged(root: Path, runtime: Path) -> Iterator[Damage]:
    """Yield the damaged files of a host, but for the journal's; absent ones are not damaged."""
    for path, check in _files(root, runtime):
        if not os.path.lexists(path):
            continue
        try:
            check(path)
        except (FileNotFoundError, PermissionError):  # removed meanwhile; this user may not read it
            continue
        except OSError as error:
            yield Damage(path, error.strerror or str(error))
        except ValueError as error:
            yield Damage(path, str(error))


def _files(root: Path, runtime: Path) -> Iterator[tuple[Path, Callable[[Path], object]]]:
    slots, canary = Slots(root), CanaryFile(runtime)
    for slot in SLOTS:
        yield root / slot, lambda path: os.readlink(path)  # noqa: PTH115
    yield canary.path, lambda path: canary.parse(regular_file.read(path))
    yield runtime / "rollback", lambda path: regular_file.read(path).decode()
    yield rollout_report.path(runtime), lambda path: fields.read(rollout_report.RolloutReport, path)
    for slot in SLOTS:
        yield runtime / slot, lambda path: next(path.iterdir(), None)
        yield http_socket(runtime, slot), _check_socket
        yield handoff_socket(runtime, slot), _check_socket
        for directory in generation_directories(runtime, slot):
            order = WeightsOrderFile(slots.root, slot, directory)
            yield directory / "generation.json", lambda path: Generation.parse(path.parent)
            yield directory / "successor.json", lambda path: Successor.parse(path.parent)
            yield order.path, lambda path: WeightsOrderFile.parse(regular_file.read(path))
            for path in directory.glob(WORKER_FILES):
                yield path, lambda path: fields.read(WorkerState, path)
            for path in directory.glob("[0-9]*.samples"):
                yield path, samples.check


def _check_socket(path: Path) -> None:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ValueError("it is not a socket")
