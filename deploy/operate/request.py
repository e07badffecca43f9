"""One request of an operator, on a connection that systemd accepted: who asks, and for what."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress

from rich.markup import escape

from deploy.errors import GlmError
from deploy.operate.operators import operator_of
from deploy.operate.running import Running
from deploy.rollout.plan import Context
from service.contract import fields, operations
from service.contract.operations import Request

__all__ = ["answer"]

_TIMEOUT = 5.0  # seconds in which a request has to arrive
_DELAY = 1.0  # seconds before a wrong key is answered; systemd bounds how many wait at a time


def answer(context: Context, connection: socket.socket, glmctl: list[str]) -> Running | None:
    """Answer the request on `connection` and close it; returns the operation that it began.

    `glmctl`: the beginning of the command, which no request changes.
    """
    with connection:
        connection.settimeout(_TIMEOUT)
        running = None
        try:
            request = _read(connection)
            operator = operator_of(context.host.operators, request.key)
            if operator is None:
                context.display.line("refused: a wrong key")
                time.sleep(_DELAY)
                reply = {"error": "key"}
            elif not request.verb:
                reply = {"operator": operator}
            else:
                words = operations.command(request.verb, request.values)
                running = Running.begin(context.host.state, operator, glmctl, words)
                reply = {"operator": operator, "id": running.operation.id}
        except (OSError, ValueError, GlmError) as error:
            context.display.line(f"refused: {escape(str(error))}")
            reply = {"error": str(error)}
        with suppress(OSError):  # the page was closed; the operation goes on
            connection.sendall(json.dumps(reply).encode() + b"\n")
    return running


def _read(connection: socket.socket) -> Request:
    """Return a request; raises OSError, and ValueError if it is malformed."""
    data = b""
    deadline = time.monotonic() + _TIMEOUT
    while not data.endswith(b"\n"):
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        more = connection.recv(operations.MAX_REQUEST)
        data += more
        if not more or len(data) > operations.MAX_REQUEST:
            raise ValueError("the request is incomplete or too long")
    return fields.from_json(Request, data)
