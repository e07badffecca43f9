"""What the page asks of `glmctl operate`, for who holds an operator's key."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service.contract import operations
from service.contract.operations import Request

__all__ = ["Attempts", "OperateError", "Operator", "Values", "WrongKeyError"]

Values = Mapping[str, str]

_TIMEOUT = 60.0  # seconds; it starts a process, and answers a wrong key late
_LARGEST = 65_536  # bytes of an answer
_ADDRESSES = 1000


class OperateError(Exception):
    """The request was refused, or nobody answered; the text says why."""


class WrongKeyError(OperateError):
    """The key is not an operator's."""


class Operator:
    """The socket of `glmctl operate`. Thread-safe."""

    def __init__(self, runtime: Path) -> None:
        self._path = operations.socket_path(runtime)

    @classmethod
    def of_host(cls) -> Operator | None:
        """Return that of this host, whose runtime directory is GLM_RUNTIME; None where operating is off."""
        runtime = os.environ.get("GLM_RUNTIME")
        if not runtime:
            return None
        found = cls(Path(runtime))
        return found if found.is_on else None

    @property
    def is_on(self) -> bool:
        """Whether the socket exists."""
        try:
            return stat.S_ISSOCK(self._path.stat().st_mode)
        except OSError:
            return False

    def name_of(self, key: str) -> str:
        """Return whose key it is; raises OperateError."""
        return str(self._ask(key, "", {})["operator"])

    def begin(self, key: str, verb: str, values: Values) -> str:
        """Begin an operation and return its id. Raises OperateError, also before anything is sent."""
        try:
            operations.command(verb, values)
        except ValueError as error:
            raise OperateError(str(error)) from error
        return str(self._ask(key, verb, values)["id"])

    def _ask(self, key: str, verb: str, values: Values) -> dict[str, Any]:
        request = Request(key, verb, dict(values)).line()
        if len(request) > operations.MAX_REQUEST:
            raise OperateError("the request is too long")
        try:
            with socket.socket(socket.AF_UNIX) as channel:
                channel.settimeout(_TIMEOUT)
                channel.connect(str(self._path))
                channel.sendall(request)
                with channel.makefile("rb") as stream:
                    reply = json.loads(stream.readline(_LARGEST))
        except (OSError, ValueError) as error:
            raise OperateError(f"glm-operate.socket: {getattr(error, 'strerror', None) or error}") from error
        if reply.get("error") == "key":
            raise WrongKeyError("it is not the key of an operator")
        if "error" in reply:
            raise OperateError(str(reply["error"]))
        return dict(reply)


class Attempts:
    """Counts wrong keys: `limit` from one address in `seconds`, after which none of it is tried. Thread-safe."""

    def __init__(self, limit: int = 5, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._seconds, self._clock = limit, seconds, clock
        self._lock = threading.Lock()
        self._wrong: dict[str, deque[float]] = {}

    def begin(self, address: str) -> bool:
        """Return whether a key may be tried, and count it as wrong until `forget`."""
        now = self._clock()
        with self._lock:
            wrong = self._wrong.pop(address, deque())
            while wrong and wrong[0] <= now - self._seconds:
                wrong.popleft()
            self._wrong[address] = wrong  # the last one now
            if len(self._wrong) > _ADDRESSES:
                del self._wrong[next(iter(self._wrong))]
            if len(wrong) >= self._limit:
                return False
            wrong.append(now)
            return True

    def forget(self, address: str) -> None:
        """Take back the last attempt of an address: its key was right, or nobody compared it."""
        with self._lock:
            if wrong := self._wrong.get(address):
                wrong.pop()
