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

__all__ = ["Answer", "Fault", "Live", "Piece", "Service", "ServiceError", "service_address"]

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
    WAITED = "waited"
    TOO_LARGE = "too_large"
    TOO_LONG = "too_long"
    REJECTED = "rejected"
    FAILED = "failed"
    STRANGE = "strange"
    PICTURE = "picture"


# What the service's own codes say more exactly than the status does.
CODES = {"queue_full": Fault.BUSY, "queue_timeout": Fault.WAITED, "context_length_exceeded": Fault.TOO_LONG}


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


@dataclass(frozen=True)
class Piece:
    """A part of an answer, or of the thought before it."""

    text: str
    thought: bool = False


class Answer:
    """An answer that is on its way: who gives it is known at once, its pieces come by iterating.

    Iterating raises ServiceError, also when the stream ends before the service has said that it is complete.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.live = Live(response.headers.get("x-model-version", ""), response.headers.get("x-slot", ""))
        self.finish = ""  # why it ended, in OpenAI's words: stop, length

    def __iter__(self) -> Iterator[Piece]:
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
                yield from self._pieces(data)
        raise ServiceError(Fault.BROKEN)

    def _pieces(self, data: bytes) -> list[Piece]:
        event = _document(data)
        if "error" in event:
            raise _objection(event, Fault.FAILED)
        try:
            choice = event["choices"][0] if event["choices"] else {"delta": {}}
            self.finish = choice.get("finish_reason") or self.finish
            thought, text = choice["delta"].get("reasoning_content"), choice["delta"].get("content")
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ServiceError(Fault.STRANGE) from error
        return [Piece(thought, thought=True)] * bool(thought) + [Piece(text)] * bool(text)


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
    if status == 413:
        fault = Fault.TOO_LARGE
    elif status in {429, 503}:
        fault = Fault.BUSY
    elif 400 <= status < 500:
        fault = Fault.REJECTED
    else:
        fault = Fault.FAILED if status >= 500 else Fault.STRANGE
    try:
        document = _document(response.read())
    except ServiceError:
        raise ServiceError(fault, f"HTTP {status}") from None
    raise _objection(document, fault)


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ServiceError(Fault.STRANGE) from error
    if not isinstance(document, dict):
        raise ServiceError(Fault.STRANGE)
    return document


def _objection(document: Mapping[str, Any], fault: Fault) -> ServiceError:
    """Read an error object; `fault` is what it means unless its code says more."""
    error = document.get("error")
    if not isinstance(error, dict):
        return ServiceError(fault, str(error or ""))
    return ServiceError(CODES.get(str(error.get("code")), fault), str(error.get("message", "")))


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut at line feeds alone: httpx's own iter_lines also cuts at U+2028 and its like, which answers may hold."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
