"""Staging of weights beside a running model: where there is room, and given back. CUDA's ways, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from service.engine import staging, tensors
from service.engine.staging import DEVICE_RESERVE, HOST_RESERVE, Place, place_for, stage
from service.engine.tensors import Weights

MUCH = 1 << 40
PLACES: list[Place] = ["device memory", "pinned memory", "mapped files"]
ROOM = {"device memory": (MUCH, MUCH), "pinned memory": (0, MUCH), "mapped files": (0, 0)}
"""Free bytes of device and host with which weights are staged there."""

sizes = st.integers(0, 200 << 30)


class FakeMemory(staging.Memory):
    """The memory of the CPU, with the free bytes of another device and host; records what is held and pinned."""

    def __init__(self, on_device: int, on_host: int) -> None:
        super().__init__(torch.device("cpu"))
        self._on_device, self._on_host = on_device, on_host
        self.pinned: list[int] = []
        self.held: list[Tensor] = []
        self.events: list[str] = []

    @property
    def on_device(self) -> int:
        return self._on_device

    @property
    def on_host(self) -> int:
        return self._on_host

    def allocate(self, place: Place, size: int) -> Tensor:
        self.held.append(super().allocate(place, size))
        return self.held[-1]

    @contextmanager
    def copying(self) -> Iterator[None]:
        yield
        self.events.append("copied")

    def pin(self, block: Tensor) -> None:
        self.pinned.append(block.data_ptr())
        self.events.append("pinned")

    def unpin(self, block: Tensor) -> None:
        self.pinned.remove(block.data_ptr())

    def free(self, block: Tensor) -> None:
        assert block.data_ptr() not in self.pinned, "memory that is still pinned was freed"
        self.held = [one for one in self.held if one is not block]
        super().free(block)


def memory_for(place: Place) -> FakeMemory:
    on_device, on_host = ROOM[place]
    return FakeMemory(on_device, on_host)


class Model(nn.Module):
    """Tensors of several dtypes, shapes and sizes, one without elements."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.device = torch.device("cpu")
        for name, tensor in {
            "matrix": torch.randn(33, 7),
            "narrow": torch.randn(1000, dtype=torch.bfloat16),
            "scalar": torch.randn(()),
            "counts": torch.randint(100, (5,)),
            "none": torch.empty(0, 4),
        }.items():
            self.register_buffer(name, tensor)


def weights_of(seed: int) -> Weights:
    return Model(seed).state_dict()


def raw(weights: Weights) -> dict[str, list[Any]]:
    return {name: [tensor.dtype, tensor.tolist()] for name, tensor in weights.items()}


@given(size=sizes, on_device=sizes, on_host=sizes)
def test_the_device_comes_first_then_the_host(size: int, on_device: int, on_host: int) -> None:
    """Staging leaves a reserve, on the device for running requests; without room the files stay mapped."""
    place = place_for(size, FakeMemory(on_device, on_host))
    if on_device - size >= DEVICE_RESERVE:
        assert place == "device memory"
    elif on_host - size >= HOST_RESERVE:
        assert place == "pinned memory"
    else:
        assert place == "mapped files"


@pytest.mark.parametrize("place", PLACES)
def test_staged_weights_are_those_that_were_read(place: Place) -> None:
    """In one block where they are copied, aligned; the model gets them in the memory that its tensors have."""
    model, weights, memory, steps = Model(1), weights_of(2), memory_for(place), list[float]()
    addresses = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    staged = stage(weights, memory, lambda _, share: steps.append(share))
    assert staged.place == place
    assert raw(staged.weights) == raw(weights)
    assert raw(model.state_dict()) == raw(weights_of(1)), "nothing is replaced yet"
    if place != "mapped files":
        [block] = memory.held
        places = {
            tensor.data_ptr() - block.data_ptr(): tensor.nbytes for tensor in staged.weights.values() if tensor.nbytes
        }
        assert all(begin % 512 == 0 and begin + size <= len(block) for begin, size in places.items())
        assert steps == sorted(steps)
        assert steps[-1] == 1.0
    assert memory.events == {"device memory": ["copied"], "pinned memory": ["copied", "pinned"]}.get(place, [])
    tensors._copy(model, staged.weights)
    staged.release()
    assert raw(model.state_dict()) == raw(weights)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == addresses


@pytest.mark.parametrize("place", ["device memory", "pinned memory"])
def test_released_memory_is_free_whoever_refers_to_it(place: Place) -> None:
    """A forgotten reference to the weights, as in a call that has been made, keeps no copy of the model."""
    memory = memory_for(place)
    staged = stage(weights_of(2), memory, lambda *_: None)
    [block], one = memory.held, staged.weights["matrix"]
    staged.release()
    assert (memory.held, memory.pinned) == ([], [])
    assert block.untyped_storage().nbytes() == one.untyped_storage().nbytes() == 0
    assert staged.weights == {}


def test_weights_for_the_cpu_stay_where_they_are() -> None:
    """They are mapped files, which the model takes over without a copy."""
    weights = weights_of(2)
    staged = stage(weights, None, lambda *_: None)
    assert (staged.place, staged.weights) == ("memory", weights)
    staged.release()
    assert staged.weights is weights
    assert len(weights) == 5
    assert staging.memory_of(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("place", "method"), [("device memory", "allocate"), ("pinned memory", "allocate"), ("pinned memory", "pin")]
)
def test_memory_that_cannot_be_had_is_done_without(place: Place, method: str) -> None:
    """Another process may have taken it, or the driver refuses: the files serve, and nothing is held."""

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    memory, weights = memory_for(place), weights_of(2)
    with patch.object(memory, method, refuse):
        staged = stage(weights, memory, lambda *_: None)
    assert staged.place == "mapped files"
    assert raw(staged.weights) == raw(weights)
    assert (memory.held, memory.pinned) == ([], [])


@pytest.mark.parametrize("place", ["device memory", "pinned memory"])
def test_a_failure_leaves_nothing_behind(place: Place) -> None:
    """Whatever happens on the way, the model has its old weights, and the memory is given back."""
    memory, weights = memory_for(place), weights_of(2)

    def fail(_: str, share: float) -> None:
        if share:
            raise OSError("the worker is leaving")

    with pytest.raises(OSError, match="leaving"):
        stage(weights, memory, fail)
    assert (memory.held, memory.pinned) == ([], [])
    assert raw(weights) == raw(weights_of(2))
