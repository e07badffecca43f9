"""An upload: a multipart form whose file goes to the disk as it comes."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.batches.database import Database
from service.batches.files import Draft
from service.chat.errors import ApiError, invalid

__all__ = ["Upload"]

MAX_FIELD = 4096  # bytes of all fields that are not the file, names included
_FIELDS = {b"file", b"purpose", b"expires_after[anchor]", b"expires_after[seconds]"}


class Upload:
    """The form of one request. `draft` takes what comes as the field `file`; nothing else is kept for long."""

    def __init__(self, draft: Draft, max_file: int) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._draft = draft
        self._max_file = max_file
        self._name = b""
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._value = bytearray()
        self._small = 0
        self._whole = False

    async def read(self, request: Request, database: Database) -> None:
        """Take the body in; raises ApiError 400, 413 and 415, and Unavailable."""
        kind, options = parse_options_header(request.headers.get("content-type"))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise ApiError(
                415, "the content type must be multipart/form-data with a boundary", code="unsupported_media_type"
            )
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._max_file + (1 << 16):  # headers and fields are less
            raise self._too_large()
        try:
            parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_ends,
                    "on_end": self._form_ends,
                },
            )
            async for chunk in request.stream():
                await database.call(parser.write, chunk)
            parser.finalize()
        except FormParserError as error:
            raise _unreadable(str(error)) from error
        if not self._whole:
            raise _unreadable("it ends before its last boundary")
        if self.filename is None:
            raise invalid("file is missing", param="file")

    def _part_begins(self) -> None:
        self._name, self._disposition, self._value = b"", b"", bytearray()

    def _header_ends(self) -> None:
        name, value = (bytes(part) for part in self._header)
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = (bytearray(), bytearray())

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"")
        if self._name == b"file":
            if self.filename is not None:
                raise invalid("file is there twice", param="file")
            if b"filename" not in options:
                raise invalid("file must be a file, with a filename", param="file")
            self.filename = options[b"filename"].decode(errors="replace")[:255] or "unnamed"

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == b"file":
            if self._draft.size + end - start > self._max_file:
                raise self._too_large()
            self._draft.write(data[start:end])
            return
        self._small += end - start
        if self._small > MAX_FIELD:
            raise _unreadable(f"the fields beside the file are larger than {MAX_FIELD} bytes")
        self._value += data[start:end]

    def _part_ends(self) -> None:
        if self._name in _FIELDS and self._name != b"file":
            self.fields[self._name.decode()] = self._value.decode(errors="replace")

    def _form_ends(self) -> None:
        self._whole = True

    def _too_large(self) -> ApiError:
        # what is left of the body will not be read, so nothing can follow it on this connection
        close = {"Connection": "close"}
        return ApiError(413, f"the file is larger than {self._max_file} bytes", code="too_large", headers=close)


def _unreadable(why: str) -> ApiError:
    return ApiError(400, f"the form cannot be read: {why[:200]}", headers={"Connection": "close"})
