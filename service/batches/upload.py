"""Uploads: multipart forms, whose file is streamed to disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.chat.errors import ApiError, invalid
from service.fairness.timed_pool import Calls

if TYPE_CHECKING:
    from service.batches.files import Draft

__all__ = ["Upload"]

MAX_FIELDS = 4096  # bytes of all fields other than the file
MAX_PARTS = 16  # the file, the fields, and what clients may add
_FIELDS = {b"file", b"purpose", b"expires_after[anchor]", b"expires_after[seconds]"}


class Upload:
    """The form of one request. The field `file` is written to `draft`; `fields` holds the other known fields."""

    def __init__(self, draft: Draft, max_file: int) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._draft = draft
        self._max_file = max_file
        self._name = b""
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._value = bytearray()
        self._content = bytearray()  # of the file, from the chunk that is being parsed
        self._parts = 0
        self._fields_size = 0
        self._complete = False

    async def read(self, request: Request, calls: Calls) -> None:
        """Read the request body; raises ApiError 400, 413 and 415, and Unavailable."""
        kind, options = parse_options_header(request.headers.get("content-type"))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise ApiError(
                415, "the content type must be multipart/form-data with a boundary", code="unsupported_media_type"
            )
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._max_file + (1 << 16):  # 64 KiB for headers and fields
            raise self._too_large()
        if length.isdecimal():
            await calls.run(self._draft.require, max(0, int(length) - (1 << 16)))
        try:
            parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
            async for chunk in request.stream():
                await calls.run(self._parse, parser, chunk)
            parser.finalize()
        except FormParserError as error:
            raise _unreadable(str(error)) from error
        if not self._complete:
            raise _unreadable("the last boundary is missing")
        if self.filename is None:
            raise invalid("file is missing", param="file")

    def _parse(self, parser: MultipartParser, chunk: bytes) -> None:
        """Parse a chunk, and write what it has of the file at once: the parser gives each line end by itself."""
        parser.write(chunk)
        if self._content:
            self._draft.write(bytes(self._content))
            self._content.clear()

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _unreadable(f"it has more than {MAX_PARTS} parts")
        self._name, self._disposition, self._value = b"", b"", bytearray()

    def _on_header_end(self) -> None:
        name, value = (bytes(part) for part in self._header)
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"")
        if self._name == b"file":
            if self.filename is not None:
                raise invalid("there is more than one file", param="file")
            if b"filename" not in options:
                raise invalid("file has no filename", param="file")
            self.filename = options[b"filename"].decode(errors="replace")[:255] or "unnamed"

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == b"file":
            if self._draft.size + len(self._content) + end - start > self._max_file:
                raise self._too_large()
            self._content += data[start:end]
            return
        self._fields_size += end - start
        if self._fields_size > MAX_FIELDS:
            raise _unreadable(f"the fields other than the file are larger than {MAX_FIELDS} bytes")
        self._value += data[start:end]

    def _on_part_end(self) -> None:
        if self._name in _FIELDS and self._name != b"file":
            self.fields[self._name.decode()] = self._value.decode(errors="replace")

    def _on_end(self) -> None:
        self._complete = True

    def _too_large(self) -> ApiError:
        # the rest of the body is not read, so the connection cannot be reused
        close = {"Connection": "close"}
        return ApiError(413, f"the file is larger than {self._max_file} bytes", code="too_large", headers=close)


def _unreadable(reason: str) -> ApiError:
    return ApiError(400, f"the form cannot be read: {reason[:200]}", headers={"Connection": "close"})
