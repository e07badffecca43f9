"""The GPUs of each slot, `[devices]` in glm.toml, and the GPU of each worker.

The controller's preflight and the master of a generation compute them with the same functions. A worker has a GPU of
its own, and sees no other one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from service.contract import regular_file
from service.contract.engine_settings import parse_device
from service.contract.slots import SLOTS

__all__ = ["CPU", "Devices", "Gpu", "Name", "gpus_of_workers", "is_mig", "label"]

CPU = "cpu"
"""The device of a worker without a GPU, as state files and metrics name it."""

Name = int | str
"""A GPU's number, or its UUID."""

_UUID = re.compile(r"GPU-[0-9A-Fa-f-]{4,}")
_MIG = "MIG-"


@dataclass(frozen=True)
class Gpu:
    """A GPU of this host."""

    index: int
    """Its number in `nvidia-smi`."""
    uuid: str
    """`GPU-...`; CUDA_VISIBLE_DEVICES takes it, and then it does not matter in which order CUDA counts."""
    peers: tuple[Gpu, ...] = field(default=(), kw_only=True)
    """Others that the same worker has, whose model is divided among all of them."""

    @property
    def all(self) -> tuple[Gpu, ...]:
        """The GPU itself, and its peers."""
        return (self, *self.peers)

    @property
    def label(self) -> str:
        """How state files and metrics name the device."""
        return f"cuda:{'+'.join(str(gpu.index) for gpu in self.all)}"

    def has(self, name: Name) -> bool:
        """Return whether `name` is its number, its UUID, or the beginning of that."""
        return name == self.index if isinstance(name, int) else self.uuid.lower().startswith(name.lower())


G = TypeVar("G", bound=Gpu)


@dataclass(frozen=True)
class Devices:
    """The table `[devices]`: the GPUs of each slot, by number or UUID; None: all of the host."""

    blue: tuple[Name, ...] | None = None
    green: tuple[Name, ...] | None = None

    @classmethod
    def parse(cls, table: object) -> Devices:
        """Make it of the parsed table; raises ValueError that names the key at fault."""
        if not isinstance(table, dict):
            raise ValueError("it is not a table")  # noqa: TRY004  (bad data, not a bad call)
        if unknown := sorted(table.keys() - set(SLOTS)):
            raise ValueError(f"{unknown[0]} is not a slot; the slots are {' and '.join(SLOTS)}")
        if table and (missing := [slot for slot in SLOTS if slot not in table]):
            raise ValueError(f"{missing[0]} is missing; name the GPUs of both slots, or of none for all of them")
        return cls(**{slot: _names(slot, value) for slot, value in table.items()})

    @classmethod
    def read(cls, policy: Path) -> Devices:
        """Read the table in the file `policy`, the default without one; raises OSError, and ValueError."""
        try:
            text = regular_file.read(policy, follow=True)
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        try:
            return cls.parse(tomllib.loads(text.decode()).get("devices", {}))
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error

    def of(self, slot: str, gpus: Sequence[G], visible: str | None = None) -> list[G]:
        """Return the GPUs of `slot` among the host's `gpus`.

        `visible`: CUDA_VISIBLE_DEVICES of the service, which applies where the table names none. Raises ValueError for
        a GPU that the host lacks, or that is named twice.
        """
        names = self.blue if slot == "blue" else self.green
        if names is None:
            return list(gpus) if visible is None or is_mig(visible) else _visible(gpus, visible)
        found: list[G] = []
        for name in names:
            matching = [gpu for gpu in gpus if gpu.has(name)]
            if not matching:
                raise ValueError(f"[devices] gives {slot} the GPU {name}, and this host has {_list(gpus)}")
            if len(matching) > 1:
                raise ValueError(f"[devices] gives {slot} the GPU {name}, with which several UUIDs begin")
            if matching[0] in found:
                raise ValueError(f"[devices] gives {slot} the GPU {matching[0].index} twice")
            found += matching
        return found

    def is_shared(self, gpu: Gpu) -> bool:
        """Return whether both slots may use `gpu`."""
        return all(names is None or any(gpu.has(name) for name in names) for names in (self.blue, self.green))


def gpus_of_workers(device: str, gpus: Sequence[G], workers: int, slot: str, each: int = 1) -> list[G]:
    """Return the GPUs of the workers of `slot`, `each` for one after the other; none if the release runs on the CPU.

    `device`: of the release's engine settings, where `cuda:N` is the Nth of the slot's GPUs, from 0, and allows one
    worker. `gpus`: those of the slot. `workers`: GLM_WORKERS; 0: one for each GPU. Raises ValueError.
    """
    kind, number = parse_device(device)
    if kind == "cpu":
        return []
    used = list(gpus if number is None else gpus[number : number + 1])
    if kind == "cuda" and not used:
        count = f"{len(gpus)} visible GPU{'' if len(gpus) == 1 else 's'}"
        raise ValueError(f"the release needs the device {device}, and {slot} has {count}")
    if used and len(used) < each:
        raise ValueError(f"a worker of the release needs {each} GPUs, and {slot} has {_list(used)}")
    if used and workers > len(used) // each:
        raise ValueError(
            f"GLM_WORKERS is {workers}, and {slot} has {_list(used)} for the device {device}: "
            f"each worker needs {'a GPU' if each == 1 else f'{each} GPUs'} of its own; without GLM_WORKERS each GPU "
            "gets a worker"
        )
    return used[: (workers or len(used) // each) * each]


def is_mig(visible: str) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES names part of a GPU (MIG): it is left as it is, for one worker."""
    return visible.strip().startswith(_MIG)


def label(gpu: Gpu | None) -> str:
    """Return how state files and metrics name a worker's device."""
    return gpu.label if gpu else CPU


def _names(slot: str, value: object) -> tuple[Name, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{slot} is not a list of GPUs, such as [0, 1]")
    for number, name in enumerate(value):
        is_number = isinstance(name, int) and not isinstance(name, bool) and name >= 0
        if not is_number and not (isinstance(name, str) and _UUID.fullmatch(name)):
            raise ValueError(
                f"{slot}[{number}] is {repr(name)[:100]}, not the number or the UUID (GPU-...) of a GPU; "
                "`nvidia-smi -L` lists them"
            )
        if name in value[:number]:
            raise ValueError(f"{slot} has {name!r} twice")
    return tuple(value)


def _visible(gpus: Sequence[G], value: str) -> list[G]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names; CUDA ignores everything from the first unknown name on."""
    found: list[G] = []
    for text in value.split(","):
        name: Name = int(text) if text.strip().isdecimal() else text.strip()
        matching = [gpu for gpu in gpus if name != "" and gpu.has(name)]
        if len(matching) != 1 or matching[0] in found:
            break
        found += matching
    return found


def _list(gpus: Sequence[Gpu]) -> str:
    numbers = ", ".join(str(gpu.index) for gpu in gpus)
    return f"{len(gpus)} GPU{'' if len(gpus) == 1 else 's'}" + (f" ({numbers})" if gpus else "")
