"""What was read from a client and not parsed yet, and when to read more."""

from __future__ import annotations

import asyncio
import re
from typing import Literal

from uvicorn.protocols.http.flow_control import FlowControl

__all__ = ["Inbox", "ReadFlow", "Reason"]

_END = b"\r\n\r\n"  # of a head, and of a chunked body

_LINE = re.compile(rb"[A-Z-]{1,30} [^ ]+ HTTP/1\.[01]")
_BEGINNING = re.compile(rb"[A-Z-]{1,30}(?: .*)?", re.DOTALL)

Reason = Literal["body", "inbox", "lingering", "move", "rate"]


class Inbox:
    """A buffer that begins with a head, or with the next part of the body whose head was taken."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = bytearray(data)
        self._searched = 0  # bytes in which no head ends
        self._tail = b""  # the last bytes that were taken of a chunked body

    def __len__(self) -> int:
        return len(self._data)

    def __bytes__(self) -> bytes:
        return bytes(self._data)

    def add(self, data: bytes) -> None:
        """Append what was read."""
        self._data += data

    def clear(self) -> None:
        """Forget everything."""
        self._data.clear()
        self._searched = 0

    def skip_empty_lines(self) -> int:
        """Remove line ends at the beginning, as the parser does, since they are no part of a request; returns bytes."""
        if not self._data or self._data[0] not in b"\r\n":
            return 0
        before = len(self._data)
        self._data = self._data.lstrip(b"\r\n")
        self._searched = 0
        return before - len(self._data)

    @property
    def head_size(self) -> int | None:
        """Size of the head in bytes; None until it is whole. What can become no head has the size of the buffer."""
        data, start = self._data, self._searched
        end = data.find(_END, start)
        if end >= 0:
            return end + len(_END)
        if (
            data.count(b"\n", start) > data.count(b"\r\n", start)
            or data.find(0, start) >= 0
            or not self._begins_request
        ):
            return len(data)
        self._searched = max(0, len(data) - len(_END))
        if data[self._searched - 1 : self._searched + 1] == b"\r\n":  # a line end is not split
            self._searched += 1
        return None

    @property
    def _begins_request(self) -> bool:
        line, end, _ = self._data.partition(b"\r\n")
        return bool(_LINE.fullmatch(line) if end else _BEGINNING.fullmatch(line))

    @property
    def url_size(self) -> int:
        """Size of the head's URL in bytes, as far as it has come."""
        words = bytes(self._data).partition(b"\r\n")[0].split(b" ", 2)
        return len(words[1]) if len(words) > 1 else 0

    def take(self, size: int) -> bytes:
        """Take at most `size` bytes."""
        self._searched = 0
        self._tail = b""
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken

    def take_chunks(self, limit: int) -> bytes:
        """Take at most `limit` bytes of a chunked body, and nothing behind its end."""
        tail = self._tail
        end = (tail + self._data[:limit]).find(_END)
        taken = self.take(limit if end < 0 else end + len(_END) - len(tail))
        self._tail = (tail + taken)[1 - len(_END) :]
        return taken


class ReadFlow(FlowControl):
    """Uvicorn's flow control, with more reasons not to read: `body` is Uvicorn's, a body that is not consumed."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._reasons: set[Reason] = set()

    def pause_reading(self, reason: Reason = "body") -> None:
        """Read no more until every reason has gone."""
        if not self._reasons:
            self._transport.pause_reading()
        self._reasons.add(reason)

    def resume_reading(self, reason: Reason = "body") -> None:
        """Read again, unless there is another reason not to."""
        if reason in self._reasons:
            self._reasons.remove(reason)
            if not self._reasons:
                self._transport.resume_reading()
