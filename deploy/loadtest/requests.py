"""The requests of the load."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

PROMPTS = (
    "Name a colour.",
    "Count to three.",
    "What is a door?",
    "Say good morning.",
    "Which is larger, 7 or 9?",
    "Spell the word socket.",
)
MIN_TOKENS, MAX_TOKENS = 2, 4
"""Range of `max_tokens` of a chat that is not streamed."""
STREAM_TOKENS = 24


class BodyType(Enum):
    """The expected body of a response."""

    VERSION = auto()
    MODELS = auto()
    CHAT = auto()
    STREAM = auto()


@dataclass(frozen=True, slots=True)
class Request:
    """The bytes of a request and the expected response."""

    label: str
    raw: bytes
    body_type: BodyType
    body: bytes = b""
    closes: bool = False
    """Whether the server is expected to close the connection after the response."""


class RequestFactory:
    """Builds the requests for one server.

    They are written here and not by h11, which refuses to send HTTP/1.0.
    """

    def __init__(self, host: str, port: int, model: str, api_key: str | None = None) -> None:
        """Raises ValueError if the API key has characters that a header cannot have."""
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the API key has characters that are not printable ASCII")
        self._authorization = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._host = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._model = model

    def version(self, *, close: bool = False, http10: bool = False) -> Request:
        """GET /version: the cheapest request; the body of its response repeats the version of the header."""
        return self._get("/version", BodyType.VERSION, close=close, http10=http10)

    def models(self) -> Request:
        """GET /v1/models."""
        return self._get("/v1/models", BodyType.MODELS)

    def chat(self, number: int, *, padding: int = 0) -> Request:
        """A short greedy chat; `padding` spaces after the JSON make the upload longer without changing its meaning."""
        tokens = MIN_TOKENS + number // len(PROMPTS) % (MAX_TOKENS - MIN_TOKENS + 1)
        return self._chat(number, tokens, stream=False, padding=padding)

    def stream(self, number: int) -> Request:
        """A greedy chat whose response is a stream of server-sent events."""
        return self._chat(number, STREAM_TOKENS, stream=True, padding=0)

    def _get(self, path: str, body_type: BodyType, *, close: bool = False, http10: bool = False) -> Request:
        protocol = "HTTP/1.0" if http10 else "HTTP/1.1"
        connection = "connection: close\r\n" if close else ""
        raw = f"GET {path} {protocol}\r\nhost: {self._host}\r\n{self._authorization}{connection}\r\n".encode()
        return Request(f"GET {path} {protocol}", raw, body_type, closes=close or http10)

    def _chat(self, number: int, tokens: int, *, stream: bool, padding: int) -> Request:
        parameters: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": stream,
        }
        body = json.dumps(parameters).encode()
        path = "/v1/chat/completions"
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\n{self._authorization}content-type: application/json\r\n"
            f"content-length: {len(body) + padding}\r\n\r\n"
        )
        body_type = BodyType.STREAM if stream else BodyType.CHAT
        label = f"POST {path}{' stream' if stream else ''}"
        return Request(label, head.encode() + body + b" " * padding, body_type, body)
