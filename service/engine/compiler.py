"""Whether torch.compile works here: it needs Triton and, at the first use of a kernel, a C compiler."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path

import torch

__all__ = ["works"]

log = logging.getLogger("service")


@cache
def works(device: torch.device) -> bool:
    """Whether a function can be compiled for a device; False on the CPU, where the engine compiles nothing.

    If it fails on another device, that is logged once, with the reason; the engine is slower then.
    """
    if device.type == "cpu":
        return False
    # The default is a directory in /tmp whose name is known to other users, and which the units lose at every start.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "torchinductor"))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no processes beside the worker
    try:
        torch.compile(_probe, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # Triton, the C compiler and the driver raise errors of their own
        reason = " ".join(str(error).split())[:300]
        log.warning(
            "torch.compile does not work on %s: %s: %s; requests share no memory, and steps take longer; "
            "install Triton and a C compiler",
            device,
            type(error).__name__,
            reason,
        )
        return False
    return True


def _probe(numbers: torch.Tensor) -> torch.Tensor:
    return numbers * 2 + 1
