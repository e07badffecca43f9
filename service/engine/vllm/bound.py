"""Runs first in every process that vLLM starts, as its main module: ties it to the process that started it.

It is killed with its parent, whatever ended that one, so that nothing keeps the memory of the device. TERM and INT are
blocked: when a unit stops, systemd may send TERM to all of its processes, and the core must compute the answers that
its worker still finishes. Only its worker ends it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["PARENT", "bind", "children_bound"]

PARENT = "GLM_VLLM_PARENT"
"""Environment variable with the pid of the process that starts others."""

_PR_SET_PDEATHSIG = 1


def bind() -> None:
    """Tie this process to its parent; ends it if that has died already."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os._exit(1)
    os.environ[PARENT] = str(os.getpid())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})


@contextmanager
def children_bound() -> Iterator[None]:
    """Let the processes that multiprocessing spawns in the block, and theirs, run `bind` before anything else.

    The kernel kills them when the thread ends that started them: it must live as long as they are needed.
    """
    main, parent = sys.modules["__main__"], os.environ.get(PARENT)
    os.environ[PARENT] = str(os.getpid())
    sys.modules["__main__"] = sys.modules[__name__]  # multiprocessing imports it in the child by its name
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if parent is None:
            del os.environ[PARENT]
        else:
            os.environ[PARENT] = parent


if __name__ == "__mp_main__":
    bind()
