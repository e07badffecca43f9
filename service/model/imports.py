"""Imports transformers without the parts that a server of one model never uses.

Importing a model class of transformers also imports torch.distributed, torch._dynamo and scipy, which take half of the
time: 2.9 s instead of 1.4 s beside 1.2 s for torch (one core of an AMD EPYC). Two means leave them out: transformers is
told that distributed training, flex attention, torchvision and scipy are not installed, which it supports, and a
stand-in for torch._dynamo serves the decorators that its modules apply at import. No module of torch is imported
meanwhile, so none keeps a stand-in: torch.compile and flex attention work afterwards.
"""

from __future__ import annotations

import importlib
import logging
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

__all__ = ["import_transformers"]

logger = logging.getLogger("gunicorn.error")

F = TypeVar("F")

_NEEDED = (
    "transformers.models.glm4v.modeling_glm4v",
    "transformers.models.glm46v.processing_glm46v",
    "transformers.models.glm46v.image_processing_pil_glm46v",
)
_LEFT_OUT = (
    "is_torch_distributed_available",
    "is_torch_flex_attn_available",
    "is_torchvision_available",
    "is_scipy_available",
)
_DYNAMO = "torch._dynamo"
_HIGHER_ORDER_OP = f"{_DYNAMO}._trace_wrapped_higher_order_op"


def import_transformers() -> None:
    """Import what loading and running a model needs. Starts no thread, uses no device; later calls do nothing.

    When a version of transformers cannot be imported this way, it is imported whole, with a warning.
    """
    if "transformers.modeling_utils" in sys.modules:
        return
    import torch

    if _DYNAMO in sys.modules:  # imported already: nothing to leave out
        _import()
        return
    before = set(sys.modules)
    try:
        with ExitStack() as stack:
            stack.enter_context(_without_dynamo())
            stack.enter_context(patch.object(torch.compiler, "disable", _unchanged_by))
            stack.enter_context(_told_not_installed())
            _import()
    except Exception as error:  # anything: it depends on the installed version
        logger.warning("transformers is imported whole, which takes longer: %s: %s", type(error).__name__, error)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "transformers":
                del sys.modules[name]
        _import()


def _import() -> None:
    for name in _NEEDED:
        importlib.import_module(name)


@contextmanager
def _told_not_installed() -> Iterator[None]:
    from transformers import utils
    from transformers.utils import import_utils

    with ExitStack() as stack:
        for name in _LEFT_OUT:
            for module in (import_utils, utils):
                stack.enter_context(patch.object(module, name, lambda: False))
        yield


@contextmanager
def _without_dynamo() -> Iterator[None]:
    stand_in = _dynamo_stand_in()
    sys.modules.update(stand_in)
    try:
        yield
    finally:
        for name in stand_in:
            sys.modules.pop(name, None)


def _dynamo_stand_in() -> dict[str, types.ModuleType]:
    dynamo, operator = types.ModuleType(_DYNAMO), types.ModuleType(_HIGHER_ORDER_OP)
    dynamo.__path__ = []
    for decorator in ("allow_in_graph", "assume_constant_result", "disable"):
        setattr(dynamo, decorator, _unchanged_by)
    operator.__dict__["TransformGetItemToIndex"] = type("TransformGetItemToIndex", (), {})
    return {_DYNAMO: dynamo, _HIGHER_ORDER_OP: operator}


def _unchanged_by(function: F | None = None, *_: Any, **__: Any) -> F | Callable[[F], F]:
    """Stand in for a decorator, with or without arguments."""
    return function if function is not None else lambda decorated: decorated
