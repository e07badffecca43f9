"""The service as the page sees it: who is live, and answers that arrive piece by piece."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx

__all__ = ["Answer", "Fault", "Live", "Service", "ServiceError", "service_address"]

# A host whose two copies of the model do not fit lets clients wait in the backlog for as long as a load takes.
PATIENCE = 600.0
# Below the 75 s for which the service keeps an idle connection: a request must never meet one that is being closed.
KEEP_ALIVE = 60.0
GLANCE = 1.0  # seconds that a look at /version may take; the page takes one every second

EVERY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  where we connect, not listen


class Fault(StrEnum):
    """What can go wrong with a question, as far as a person would act differently."""

    UNREACHABLE = "unreachable"
    SILENT = "silent"
    BROKEN = "broken"
    BUSY = "busy"
    TOO_LARGE = "too_large"
    REJECTED = "rejected"
    FAILED = "failed"
    STRANGE = "strange"
    PICTURE = "picture"


class ServiceError(Exception):
    """A question without its answer; the text is what the service itself said about it, or empty."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(detail)
        self.fault = fault
        self.detail = detail


@dataclass(frozen=True)
class Live:
    """Who answers at the moment."""

    version: str
    slot: str


class Answer:
    """An answer that is on its way: who gives it is known at once, its text comes by iterating.

    Iterating raises ServiceError, also when the stream ends before the service has said that it is complete.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.live = Live(response.headers.get("x-model-version", ""), response.headers.get("x-slot", ""))
        self.finish = ""  # why it ended, in OpenAI's words: stop, length

    def __iter__(self) -> Iterator[str]:
        with _faults():
            lines = _lines(self._response.iter_bytes())
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    with suppress(httpx.TransportError):
                        deque(lines, maxlen=0)  # a response read to its end leaves its connection to the next
                    return
                text = self._piece(data)
                if text:
                    yield text
        raise ServiceError(Fault.BROKEN)

    def _piece(self, data: bytes) -> str:
        event = _document(data)
        if "error" in event:
            raise ServiceError(Fault.FAILED, _said(event))
        try:
            choice = event["choices"][0] if event["choices"] else {"delta": {}}
            self.finish = choice.get("finish_reason") or self.finish
            return choice["delta"].get("content") or ""
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ServiceError(Fault.STRANGE) from error


class Service:
    """One service at `address`, host:port. Its connections are kept and shared by all threads that ask."""

    def __init__(self, address: str) -> None:
        self.address = address
        host, _, port = address.rpartition(":")
        self._client = httpx.Client(
            base_url=f"http://{EVERY_ADDRESS.get(host, host)}:{port}",
            timeout=httpx.Timeout(PATIENCE, connect=30.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=KEEP_ALIVE),
            trust_env=False,  # the service is on this host; a proxy for the world is not asked
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def live(self) -> Live:
        """Ask who answers; raises ServiceError."""
        with _faults():
            response = self._client.get("/version", timeout=GLANCE)
            _must_succeed(response)
            document = _document(response.content)
        try:
            return Live(str(document["version"]), str(document["slot"]))
        except KeyError as error:
            raise ServiceError(Fault.STRANGE) from error

    @contextmanager
    def ask(self, messages: Sequence[Mapping[str, Any]]) -> Iterator[Answer]:
        """Ask for the next turn of a conversation in OpenAI's form; raises ServiceError."""
        body = {"messages": list(messages), "stream": True}
        with _faults(), self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            _must_succeed(response)
            yield Answer(response)


def service_address() -> str:
    """Where the service listens, as host:port."""
    return os.environ.get("GLM_LISTEN") or "127.0.0.1:8000"


@contextmanager
def _faults() -> Iterator[None]:
    """Say in our words what the transport says in its own."""
    try:
        yield
    except httpx.ConnectError as error:
        raise ServiceError(Fault.UNREACHABLE) from error
    except httpx.TimeoutException as error:
        raise ServiceError(Fault.SILENT) from error
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise ServiceError(Fault.BROKEN) from error
    except httpx.InvalidURL as error:
        raise ServiceError(Fault.UNREACHABLE, str(error)) from error


def _must_succeed(response: httpx.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    try:
        detail = _said(_document(response.read()))
    except ServiceError:
        detail = f"HTTP {status}"
    if status == 413:
        raise ServiceError(Fault.TOO_LARGE, detail)
    if status in {429, 503}:
        raise ServiceError(Fault.BUSY, detail)
    if 400 <= status < 500:
        raise ServiceError(Fault.REJECTED, detail)
    raise ServiceError(Fault.FAILED if status >= 500 else Fault.STRANGE, detail)


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ServiceError(Fault.STRANGE) from error
    if not isinstance(document, dict):
        raise ServiceError(Fault.STRANGE)
    return document


def _said(document: Mapping[str, Any]) -> str:
    error = document.get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else str(error or "")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut at line feeds alone: httpx's own iter_lines also cuts at U+2028 and its like, which answers may hold."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
