"""What the candidate sends back for a mirrored request: its answer, and how long that took by its own clock.

The live slot cannot tell: it runs a model of its own, and would measure how long that keeps it from reading.
"""

from __future__ import annotations

import re

from service.contract.samples import Message, Stopwatch

__all__ = ["HEADER", "Echo", "split"]

HEADER = b"x-glm-mirrored"  # what the live slot asks with; it counts at a slot's own door alone
_LINE = b"\n: %.6f %.6f\n"  # seconds, and to the first piece or -1; a comment, as far as events go
_WRITTEN = re.compile(rb"\n: (\d+\.\d+) (-?\d+\.\d+)\n\Z")


class Echo:
    """Stands around the application, and lets the answer end with a line of times."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self.receive = watch.receive

    async def send(self, message: Message) -> None:
        """Let the application write."""
        if message["type"] == "http.response.start":
            headers = [(name, value) for name, value in message["headers"] if name.lower() != b"content-length"]
            message = {**message, "headers": headers}
        elif not message.get("more_body", False):
            message = {**message, "body": message.get("body", b"") + _LINE % self._watch.times()}
        await self._watch.send(message)


def split(body: bytes | bytearray) -> tuple[bytes, tuple[float, float] | None]:
    """Take an answer and its times apart; None where it has none, being cut short or of a version that tells none."""
    data = bytes(body)
    found = _WRITTEN.search(data, max(0, len(data) - 100))
    return (data[: found.start()], (float(found[1]), float(found[2]))) if found else (data, None)
