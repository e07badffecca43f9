"""The process that runs a function for its parent: `python -m service.isolation.child MODULE MEMORY SECONDS`.

`MODULE.begin(setup)` returns the function, which takes and returns bytes; a ValueError that it raises is an answer
too. The process ends when its parent does, since that closes its standard input.
"""

from __future__ import annotations

import importlib
import os
import resource
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["DONE", "FAILED", "HEAD", "REFUSED", "REPLY", "STACK"]

HEAD = struct.Struct("<Q")
"""Before a request: its length in bytes."""
REPLY = struct.Struct("<BQ")
"""Before a reply: DONE, REFUSED or FAILED, and its length in bytes."""
DONE, REFUSED, FAILED = range(3)

STACK = 1 << 20
"""Bytes of stack, half of what a thread of the worker has at least: what fits here fits there."""


def main() -> None:
    """Serve requests from standard input until it is closed."""
    module, memory, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    requests, replies = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is not a reply
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def serve() -> None:
        setup = _read(requests)
        if setup is None:
            return
        function = importlib.import_module(module).begin(setup)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + memory, resource.RLIM_INFINITY))
        while (request := _read(requests)) is not None:
            used = resource.getrusage(resource.RUSAGE_SELF)
            limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))  # SIGXCPU ends the process
            status, reply = _call(function, request)
            del request
            _write(replies, REPLY.pack(status, len(reply)))
            _write(replies, reply)

    threading.stack_size(STACK)
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()


def _call(function: Callable[[bytes], bytes], request: bytes) -> tuple[int, bytes]:
    try:
        return DONE, function(request)
    except ValueError as error:
        return REFUSED, str(error).encode(errors="replace")
    except MemoryError:
        return FAILED, b"it needs too much memory"
    except BaseException as error:  # the panic of a Rust library is no Exception
        return FAILED, type(error).__name__.encode()


def _read(file: BinaryIO) -> bytes | None:
    """Read one request; None at the end."""
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    data = bytearray(HEAD.unpack(head)[0])
    view, at = memoryview(data), 0
    while at < len(data):
        count = file.readinto(view[at:])  # type: ignore[attr-defined]
        if not count:
            return None
        at += count
    del view
    return bytes(data)


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


if __name__ == "__main__":
    main()
