"""The HTTP client of the service: the live version, and streamed answers."""

from __future__ import annotations

import copy
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

__all__ = ["AnswerStream", "Delta", "Fault", "LiveSlot", "ServiceClient", "ServiceError", "api_key", "service_address"]

# Seconds. During a swap requests wait in the backlog of the socket while a model is loaded.
READ_TIMEOUT = 600.0
# Seconds; less than the 75 s of the service, so that no request is sent on a connection that is being closed.
KEEP_ALIVE = 60.0
VERSION_TIMEOUT = 1.0  # seconds; the page requests /version every second

WILDCARD_ADDRESSES = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  to connect to


class Fault(StrEnum):
    """The kinds of failure that the page explains."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    BUSY = "busy"
    QUEUE_TIMEOUT = "queue_timeout"
    TOO_LARGE = "too_large"
    TOO_LONG = "too_long"
    REJECTED = "rejected"
    UNAUTHORIZED = "unauthorized"
    FAILED = "failed"
    INVALID_RESPONSE = "invalid_response"


# Codes of the service that are more specific than the HTTP status.
CODES = {"queue_full": Fault.BUSY, "queue_timeout": Fault.QUEUE_TIMEOUT, "context_length_exceeded": Fault.TOO_LONG}


class ServiceError(Exception):
    """A failed request; `detail` is the service's own message, or empty."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(detail)
        self.fault = fault
        self.detail = detail


@dataclass(frozen=True)
class LiveSlot:
    """The slot that serves, and its version."""

    version: str
    slot: str


@dataclass(frozen=True)
class Delta:
    """A part of an answer, or of the reasoning before it."""

    text: str
    reasoning: bool = False


class AnswerStream:
    """A streamed answer; iterating yields its deltas.

    `live` is known at once, but for the version of an answer that has to wait: it comes with the first delta.

    Iterating raises ServiceError, also if the stream ends without `[DONE]`.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.live = LiveSlot(response.headers.get("x-model-version", ""), response.headers.get("x-slot", ""))
        self.finish_reason = ""  # OpenAI's: stop, length
        self.tokens: int | None = None  # of the complete answer and its reasoning

    def __iter__(self) -> Iterator[Delta]:
        with _convert_errors():
            lines = _lines(self._response.iter_bytes())
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    with suppress(httpx.TransportError):
                        deque(lines, maxlen=0)  # reading to the end keeps the connection open
                    return
                yield from self._deltas(data)
        raise ServiceError(Fault.INTERRUPTED)

    def _deltas(self, data: bytes) -> list[Delta]:
        event = _document(data)
        if "error" in event:
            raise _service_error(event, Fault.FAILED)
        if not self.live.version:
            self.live = replace(self.live, version=str(event.get("system_fingerprint", "")))
        try:
            choice = event["choices"][0] if event["choices"] else {"delta": {}}
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens)
            reasoning, text = choice["delta"].get("reasoning_content"), choice["delta"].get("content")
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ServiceError(Fault.INVALID_RESPONSE) from error
        return [Delta(reasoning, reasoning=True)] * bool(reasoning) + [Delta(text)] * bool(text)


class ServiceClient:
    """A client of the service at `address`, host:port; thread-safe, with a pool of kept connections.

    `key`: the API key that is sent; None if the service needs none. `socket`: the internal socket of a slot, which
    answers instead of the address.
    """

    def __init__(self, address: str, key: str | None = None, socket: Path | None = None) -> None:
        self.address = address
        self._headers: dict[str, str] = {}  # of each request, beside those of the pool
        host, _, port = address.rpartition(":")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=KEEP_ALIVE)
        self._client = httpx.Client(
            base_url=f"http://{WILDCARD_ADDRESSES.get(host, host)}:{port}",
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(READ_TIMEOUT, connect=30.0),
            limits=limits,
            transport=httpx.HTTPTransport(uds=str(socket), limits=limits) if socket else None,
            trust_env=False,  # the service is on this host: no proxy
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def pinned(self, side: str) -> ServiceClient:
        """Return a client on the same connections whose requests one side of a canary answers: live or candidate."""
        return self._with({"x-glm-slot": side})

    def keyed(self, key: str) -> ServiceClient:
        """Return a client on the same connections that sends this API key."""
        return self._with({"authorization": f"Bearer {key}"})

    def _with(self, headers: Mapping[str, str]) -> ServiceClient:
        other = copy.copy(self)
        other._headers = {**self._headers, **headers}  # noqa: SLF001  of the same class
        return other

    def live(self) -> LiveSlot:
        """Return the live slot, or that of the side to which this client is pinned; raises ServiceError."""
        # pinned: the share of a canary must not look like a cutover
        document = self.request("GET", "/version", headers={"x-glm-slot": "live"}, timeout=VERSION_TIMEOUT)
        try:
            return LiveSlot(str(document["version"]), str(document["slot"]))
        except KeyError as error:
            raise ServiceError(Fault.INVALID_RESPONSE) from error

    @contextmanager
    def ask(
        self, messages: Sequence[Mapping[str, Any]], fields: Mapping[str, Any] | None = None
    ) -> Iterator[AnswerStream]:
        """Request the answer to `messages`, in OpenAI's format, with more fields of it; raises ServiceError."""
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        body = {**(fields or {}), "messages": list(messages), **stream}
        with self.open("POST", "/v1/chat/completions", json=body) as response:
            yield AnswerStream(response)

    def request(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """Return the JSON object that answers a request, whose arguments are httpx's; raises ServiceError."""
        with self.open(method, path, **arguments) as response:
            return _document(response.read())

    @contextmanager
    def open(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **arguments: Any
    ) -> Iterator[httpx.Response]:
        """Make a request, and yield its response, which is not read yet; raises ServiceError, also while it is read."""
        headers = {**(headers or {}), **self._headers}
        with _convert_errors(), self._client.stream(method, path, headers=headers, **arguments) as response:
            _raise_for_status(response)
            yield response


def service_address() -> str:
    """Return the address of the service, host:port, from GLM_LISTEN."""
    return os.environ.get("GLM_LISTEN") or "127.0.0.1:8000"


def api_key() -> str | None:
    """Return the API key of the page from GLM_API_KEY; None without one."""
    return os.environ.get("GLM_API_KEY", "").strip() or None


@contextmanager
def _convert_errors() -> Iterator[None]:
    """Convert errors of httpx to ServiceError."""
    try:
        yield
    except httpx.ConnectError as error:
        raise ServiceError(Fault.UNREACHABLE) from error
    except httpx.TimeoutException as error:
        raise ServiceError(Fault.TIMEOUT) from error
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise ServiceError(Fault.INTERRUPTED) from error
    except httpx.InvalidURL as error:
        raise ServiceError(Fault.UNREACHABLE, str(error)) from error


def _raise_for_status(response: httpx.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    if status == 401:
        fault = Fault.UNAUTHORIZED
    elif status == 413:
        fault = Fault.TOO_LARGE
    elif status in {429, 503}:
        fault = Fault.BUSY
    elif 400 <= status < 500:
        fault = Fault.REJECTED
    else:
        fault = Fault.FAILED if status >= 500 else Fault.INVALID_RESPONSE
    try:
        document = _document(response.read())
    except ServiceError:
        raise ServiceError(fault, f"HTTP {status}") from None
    raise _service_error(document, fault)


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ServiceError(Fault.INVALID_RESPONSE) from error
    if not isinstance(document, dict):
        raise ServiceError(Fault.INVALID_RESPONSE)
    return document


def _service_error(document: Mapping[str, Any], fault: Fault) -> ServiceError:
    """Convert an error object; `fault` is the default for unknown codes."""
    error = document.get("error")
    if not isinstance(error, dict):
        return ServiceError(fault, str(error or ""))
    return ServiceError(CODES.get(str(error.get("code")), fault), str(error.get("message", "")))


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Split at line feeds only: httpx's iter_lines also splits at U+2028 and others, which answers may contain."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
