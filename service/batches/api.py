"""The handlers of /v1/files and /v1/batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial, wraps
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from service.api.body import read_body
from service.api.openapi import describes
from service.api.routes import Endpoint
from service.batches import schemas
from service.batches.batch_params import BatchParams
from service.batches.pages import respond
from service.batches.storage import Storage
from service.batches.upload import Upload
from service.chat.errors import ApiError, invalid
from service.fairness.budget import Exhausted
from service.fairness.client import Client
from service.fairness.timed_pool import MAX_WAITING, Calls, TimedPool
from service.settings import Settings

__all__ = ["BatchRoutes"]

MAX_BODY = 1 << 16  # bytes of POST /v1/batches; up to 16 metadata entries make most of it
CHUNK = 1 << 18  # bytes read at a time from a downloaded file
FILES = 200  # of a list that are read at a time: 50 kB, or up to 350 kB by their names
BATCHES = 5  # of a list that are read at a time: each has up to 100 kB, most of it metadata and errors

M = TypeVar("M", bound=BaseModel)
Handler = Callable[[Request], Awaitable[Response]]

_STRICT = ConfigDict(strict=True, frozen=True, extra="ignore")


class Expiry(BaseModel):
    """When a file expires, in seconds after its creation."""

    model_config = _STRICT

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=30 * 24 * 3600)


_MetadataValue = Annotated[str, StringConstraints(max_length=512)]
_MetadataKey = Annotated[str, StringConstraints(max_length=64)]


class NewBatch(BaseModel):
    """The body of POST /v1/batches."""

    model_config = _STRICT

    input_file_id: str
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: dict[_MetadataKey, _MetadataValue] | None = Field(default=None, max_length=16)
    output_expires_after: Expiry | None = None


class _FileQuery(BaseModel):
    after: str | None = None
    limit: int = Field(default=10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = None


class _BatchQuery(BaseModel):
    after: str | None = None
    limit: int = Field(default=20, ge=1, le=100)


class BatchRoutes:
    """The handlers, one method per route."""

    def __init__(self, storage: Storage, settings: Settings, threads: TimedPool) -> None:
        self._storage = storage
        self._settings = settings
        self._threads = threads

    def routes(self) -> list[Endpoint]:
        """Return the routes."""
        return [
            Endpoint("/v1/files", self._opened(self.upload), method="POST"),
            Endpoint("/v1/files", self._opened(self.list_files)),
            Endpoint("/v1/files/{id}", self._opened(self.file)),
            Endpoint("/v1/files/{id}", self._opened(self.delete_file), method="DELETE"),
            Endpoint("/v1/files/{id}/content", self._opened(self.content)),
            Endpoint("/v1/batches", self._opened(self.create), method="POST"),
            Endpoint("/v1/batches", self._opened(self.list_batches)),
            Endpoint("/v1/batches/{id}", self._opened(self.batch)),
            Endpoint("/v1/batches/{id}/cancel", self._opened(self.cancel), method="POST"),
        ]

    def _opened(self, handler: Handler) -> Handler:
        """Return the handler, which opens the storage first."""

        @wraps(handler)
        async def handle(request: Request) -> Response:
            await self._storage.open()
            return await handler(request)

        return handle

    @describes(
        body=schemas.Form, body_type="multipart/form-data", response=schemas.File, errors=(400, 413, 415, 429, 503, 507)
    )
    async def upload(self, request: Request) -> Response:
        """POST /v1/files: multipart, purpose=batch; streamed to disk, and visible once it is complete."""
        calls = self._calls(request)
        draft = await calls.run(self._storage.files.draft, calls.client.key)
        try:
            form = Upload(draft, self._settings.max_file)
            await form.read(request, calls)
            if form.fields.get("purpose") != "batch":
                raise invalid("purpose must be batch", param="purpose")
            seconds = _expiry(form.fields)
            file = await calls.run(self._storage.files.add, draft, form.filename or "", "batch", seconds)
        finally:
            await calls.run(draft.close)
        return JSONResponse(file.document())

    @describes(query=_FileQuery, response=schemas.FilePage, errors=(400, 429, 503))
    async def list_files(self, request: Request) -> Response:
        """GET /v1/files."""
        query = _parse(_FileQuery, dict(request.query_params))
        calls = self._calls(request)
        find = partial(
            self._storage.files.list, newest_first=query.order == "desc", purpose=query.purpose, key=calls.client.key
        )
        return await respond(request, calls, find, after=query.after, limit=query.limit, size=FILES)

    @describes(response=schemas.File, errors=(404, 429, 503))
    async def file(self, request: Request) -> Response:
        """GET /v1/files/{id}."""
        calls = self._calls(request)
        file = await calls.run(self._storage.files.get, request.path_params["id"], key=calls.client.key)
        return JSONResponse(file.document())

    @describes(response=schemas.Deleted, errors=(400, 404, 429, 503, 507))
    async def delete_file(self, request: Request) -> Response:
        """DELETE /v1/files/{id}."""
        calls = self._calls(request)
        file_id = request.path_params["id"]
        await calls.run(self._storage.files.delete, file_id, key=calls.client.key)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    @describes(response=schemas.Bytes, response_type="application/octet-stream", errors=(404, 429, 503))
    async def content(self, request: Request) -> Response:
        """GET /v1/files/{id}/content."""
        calls = self._calls(request)
        file = await calls.run(self._storage.files.get, request.path_params["id"], key=calls.client.key)
        content = await calls.run(self._storage.files.read, file.id)
        headers = {"content-length": str(file.bytes), "content-type": "application/octet-stream"}
        if request.method == "HEAD":  # nobody would get what is read
            content.close()
            return Response(headers=headers)
        return StreamingResponse(_chunks(content, calls), headers=headers)

    @describes(body=NewBatch, response=schemas.Batch, errors=(400, 404, 413, 415, 429, 503, 507))
    async def create(self, request: Request) -> Response:
        """POST /v1/batches."""
        calls = self._calls(request)
        body = _parse(NewBatch, bytes(await read_body(request, MAX_BODY)))
        params = BatchParams(
            body.input_file_id,
            body.endpoint,
            body.completion_window,
            body.metadata,
            body.output_expires_after.seconds if body.output_expires_after else None,
        )
        return JSONResponse(await calls.run(self._storage.batches.create, params, key=calls.client.key))

    @describes(query=_BatchQuery, response=schemas.BatchPage, errors=(400, 429, 503))
    async def list_batches(self, request: Request) -> Response:
        """GET /v1/batches."""
        query = _parse(_BatchQuery, dict(request.query_params))
        calls = self._calls(request)
        find = partial(self._storage.batches.list, key=calls.client.key)
        return await respond(request, calls, find, after=query.after, limit=query.limit, size=BATCHES)

    @describes(response=schemas.Batch, errors=(404, 429, 503))
    async def batch(self, request: Request) -> Response:
        """GET /v1/batches/{id}."""
        calls = self._calls(request)
        batch = await calls.run(self._storage.batches.get, request.path_params["id"], key=calls.client.key)
        return JSONResponse(batch)

    @describes(response=schemas.Batch, errors=(400, 404, 429, 503, 507))
    async def cancel(self, request: Request) -> Response:
        """POST /v1/batches/{id}/cancel."""
        calls = self._calls(request)
        batch = await calls.run(self._storage.batches.cancel, request.path_params["id"], key=calls.client.key)
        return JSONResponse(batch)

    def _calls(self, request: Request) -> Calls:
        """Return the calls of a request before any work on it; raises ApiError 429."""
        try:
            return self._threads.calls(Client.of(request.scope))
        except Exhausted as error:
            raise ApiError(
                429,
                f"{MAX_WAITING} requests of this client for files and batches wait; try again later",
                code="queue_full",
                headers={"Connection": "close", "Retry-After": "1"},  # a body is not read
            ) from error


def _parse(model: type[M], source: bytes | dict[str, Any]) -> M:
    """Validate a JSON body or a query; raises ApiError 400 that names the field."""
    try:
        return model.model_validate_json(source) if isinstance(source, bytes) else model.model_validate(source)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(part)[:100] for part in detail["loc"]) or None
        message = detail["msg"][:300]
        raise invalid(f"{param}: {message}" if param else f"the body: {message}", param=param) from error


def _expiry(fields: dict[str, str]) -> int | None:
    """Return the form's `expires_after[seconds]`; None without it. Raises ApiError 400."""
    expiry = {name: fields[key] for name in ("anchor", "seconds") if (key := f"expires_after[{name}]") in fields}
    if not expiry:
        return None
    try:
        return Expiry.model_validate(expiry, strict=False).seconds
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        param = f"expires_after[{detail['loc'][0]}]"
        raise invalid(f"{param}: {detail['msg']}", param=param) from error


async def _chunks(file: BinaryIO, calls: Calls) -> AsyncIterator[bytes]:
    with file:
        while chunk := await calls.run(file.read, CHUNK):
            yield chunk
