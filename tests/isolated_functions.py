"""What the tests of isolation run in a process of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable


def begin(setup: bytes) -> Callable[[bytes], bytes]:
    def answer(request: bytes) -> bytes:
        verb, _, rest = request.partition(b" ")
        match verb:
            case b"echo":
                return rest
            case b"setup":
                return setup
            case b"pid":
                return str(os.getpid()).encode()
            case b"refuse":
                raise ValueError(rest.decode())
            case b"raise":
                raise KeyError(rest)
            case b"fill":
                return bytes(int(rest))
            case b"crash":
                ctypes.string_at(0)
            case b"signal":
                os.kill(os.getpid(), signal.Signals[rest.decode()])
                time.sleep(60)
            case b"spin":
                while True:
                    pass
            case b"recurse":
                return bytes([_depth(int(rest)) % 256])
            case b"print":
                print(rest.decode(), flush=True)
                os.write(1, rest)
            case b"exit":
                os._exit(int(rest))
            case _:
                sys.exit(f"unknown: {request!r}")
        return b""

    return answer


def _depth(count: int) -> int:
    return count and 1 + _depth(count - 1)
