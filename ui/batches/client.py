"""The requests of the page for files and batches, in OpenAI's format."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from ui.batches.jsonl import ENDPOINT
from ui.client import Fault, ServiceClient, ServiceError

__all__ = ["MAX_DOWNLOAD", "Batch", "BatchClient", "owner_tag"]

MAX_DOWNLOAD = 64 << 20  # bytes of a result that goes through the page, which holds it in memory
MAX_LISTED = 100  # of the latest batches of a key
UNFINISHED = {"validating", "in_progress", "finalizing", "cancelling"}
CANCELLABLE = {"validating", "in_progress"}
OWNER, FILE = "glm_page", "file"  # keys of a batch's metadata


@dataclass(frozen=True)
class Batch:
    """A batch, as the service describes it."""

    id: str
    status: str
    created_at: int  # seconds since the epoch
    total: int
    completed: int
    failed: int
    file: str
    """The name of the file, if the page has made the batch."""
    owner: str
    output: str | None
    """The identifier of the file of results."""
    error_output: str | None
    """The identifier of the file of requests that failed."""
    errors: tuple[tuple[int | None, str], ...]
    """What was wrong with the input: the line, counted from 1, and a message."""

    @property
    def unfinished(self) -> bool:
        """Whether its state will change."""
        return self.status in UNFINISHED

    @property
    def cancellable(self) -> bool:
        """Whether it can be cancelled."""
        return self.status in CANCELLABLE


class BatchClient:
    """Files and batches of one API key, that of `client`; every method raises ServiceError."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    def start(self, name: str, file: BinaryIO, owner: str) -> Batch:
        """Upload a file, which is streamed, and start the batch once the service has all of it."""
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        uploaded = self._client.request(
            "POST", "/v1/files", data={"purpose": "batch"}, files={"file": (name, file, "application/jsonl")}
        )
        if uploaded.get("bytes") != size or not isinstance(uploaded.get("id"), str):
            raise ServiceError(Fault.INTERRUPTED, f"{uploaded.get('bytes')} of {size} bytes arrived")
        body = {
            "input_file_id": uploaded["id"],
            "endpoint": ENDPOINT,
            "completion_window": "24h",
            "metadata": {OWNER: owner, FILE: name[:512]},
        }
        try:
            return _batch(self._client.request("POST", "/v1/batches", json=body))
        except ServiceError:
            with suppress(ServiceError):  # else it would count towards what the key may store
                self._client.request("DELETE", f"/v1/files/{uploaded['id']}")
            raise

    def latest(self) -> list[Batch]:
        """Return the latest batches of the key, the newest first."""
        page = self._client.request("GET", "/v1/batches", params={"limit": MAX_LISTED})
        data = page.get("data")
        if not isinstance(data, list):
            raise ServiceError(Fault.INVALID_RESPONSE)
        return [_batch(one) for one in data]

    def address(self, file: str) -> str:
        """Return the URL of a file of results."""
        return f"http://{self._client.address}/v1/files/{file}/content"

    def cancel(self, identifier: str) -> None:
        """Cancel a batch; what has been answered stays."""
        self._client.request("POST", f"/v1/batches/{identifier}/cancel")

    def size(self, file: str) -> int:
        """Return the bytes of a file of results."""
        size = self._client.request("GET", f"/v1/files/{file}").get("bytes")
        if not isinstance(size, int):
            raise ServiceError(Fault.INVALID_RESPONSE)
        return size

    def download(self, file: str) -> bytes:
        """Return a file of results of at most MAX_DOWNLOAD bytes."""
        data = bytearray()
        with self._client.open("GET", f"/v1/files/{file}/content") as response:
            for chunk in _bounded(response.iter_bytes()):
                data += chunk
        return bytes(data)


def owner_tag(browser: str) -> str:
    """Return what marks the batches of a browser; its identifier cannot be told from it."""
    return hashlib.sha256(f"batches of {browser}".encode()).hexdigest()[:32]


def _bounded(chunks: Iterable[bytes]) -> Iterable[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_DOWNLOAD:
            raise ServiceError(Fault.TOO_LARGE)
        yield chunk


def _batch(document: Mapping[str, Any]) -> Batch:
    try:
        counts, metadata = document["request_counts"], document["metadata"] or {}
        errors = (document["errors"] or {"data": []})["data"]
        return Batch(
            document["id"],
            document["status"],
            document["created_at"],
            counts["total"],
            counts["completed"],
            counts["failed"],
            metadata.get(FILE, ""),
            metadata.get(OWNER, ""),
            document["output_file_id"],
            document["error_file_id"],
            tuple((one["line"], one["message"]) for one in errors),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ServiceError(Fault.INVALID_RESPONSE) from error
