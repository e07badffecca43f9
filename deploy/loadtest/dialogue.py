"""What the clients ask, and what makes an answer right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from deploy.loadtest.wire import Answer, BrokenError, Kind

HEADERS = ("x-model-version", "x-slot", "x-request-id")
PROMPTS = (
    "Name a colour.",
    "Count to three.",
    "What is a door?",
    "Say good morning.",
    "Which is larger, 7 or 9?",
    "Spell the word socket.",
)
SHORTEST, LONGEST = 2, 4
STREAM_TOKENS = 24


class Shape(Enum):
    """What the body of the right answer looks like."""

    VERSION = auto()
    MODELS = auto()
    CHAT = auto()
    STREAM = auto()


@dataclass(frozen=True, slots=True)
class Request:
    """The bytes of a request, and what its answer must be."""

    label: str
    raw: bytes
    shape: Shape
    body: bytes = b""
    closes: bool = False
    """Whether the server is to close the connection after the answer."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who gave an answer, by its headers."""

    version: str
    slot: str


class Phrasebook:
    """Builds the requests for one server."""

    def __init__(self, host: str, port: int, model: str) -> None:
        self._host = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._model = model

    def version(self, *, close: bool = False, http10: bool = False) -> Request:
        """GET /version: the cheapest question, whose answer names the version a second time in its body."""
        return self._get("/version", Shape.VERSION, close=close, http10=http10)

    def models(self) -> Request:
        """GET /v1/models."""
        return self._get("/v1/models", Shape.MODELS)

    def chat(self, number: int, *, padding: int = 0) -> Request:
        """A short greedy chat; `padding` blanks after the JSON make a longer upload that means the same."""
        tokens = SHORTEST + number // len(PROMPTS) % (LONGEST - SHORTEST + 1)
        return self._chat(number, tokens, stream=False, padding=padding)

    def stream(self, number: int) -> Request:
        """A greedy chat answered as server-sent events."""
        return self._chat(number, STREAM_TOKENS, stream=True, padding=0)

    def _get(self, path: str, shape: Shape, *, close: bool = False, http10: bool = False) -> Request:
        protocol = "HTTP/1.0" if http10 else "HTTP/1.1"
        connection = "connection: close\r\n" if close else ""
        raw = f"GET {path} {protocol}\r\nhost: {self._host}\r\n{connection}\r\n".encode()
        return Request(f"GET {path} {protocol}", raw, shape, closes=close or http10)

    def _chat(self, number: int, tokens: int, *, stream: bool, padding: int) -> Request:
        message = {"role": "user", "content": PROMPTS[number % len(PROMPTS)]}
        asked: dict[str, Any] = {
            "model": self._model,
            "messages": [message],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": stream,
        }
        body = json.dumps(asked).encode()
        path = "/v1/chat/completions"
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body) + padding}\r\n\r\n"
        )
        shape = Shape.STREAM if stream else Shape.CHAT
        return Request(f"POST {path}{' stream' if stream else ''}", head.encode() + body + b" " * padding, shape, body)


class Judge:
    """Tells right answers from wrong ones, and remembers what each version said.

    Greedy decoding makes a version's answer a function of the request, so two different texts under one version mean
    that an answer, or a part of it, came from somewhere else. That holds where the model's arithmetic does not depend
    on what else is in the batch; bf16 is not so, and `compare=False` leaves this one check out.
    """

    def __init__(self, *, compare: bool = True) -> None:
        self._compare = compare
        self._said: dict[tuple[str, bytes], str] = {}

    def check(self, request: Request, answer: Answer) -> Origin:
        """Who gave the answer; raises BrokenError when it is not the right one."""
        if answer.status != 200:
            raise BrokenError(
                Kind.STATUS, f"{answer.status} {answer.reason}: {answer.body[:120].decode(errors='replace')}"
            )
        for name in HEADERS:
            if not answer.headers.get(name):
                raise BrokenError(Kind.HEADER, f"200 without {name}")
        origin = Origin(answer.headers["x-model-version"], answer.headers["x-slot"])
        text: str | None = None
        match request.shape:
            case Shape.VERSION:
                said = _object(answer.body).get("version")
                if said != origin.version:
                    raise BrokenError(Kind.MIXED, f"body says version {said!r}, header {origin.version!r}")
            case Shape.MODELS:
                if not isinstance(_object(answer.body).get("data"), list):
                    raise BrokenError(Kind.MALFORMED, f"no list of models: {answer.body[:60]!r}")
            case Shape.CHAT:
                text = _chat_text(answer.body)
            case Shape.STREAM:
                text = _stream_text(answer.body)
        if text is not None and self._compare:
            before = self._said.setdefault((origin.version, request.body), text)
            if before != text:
                raise BrokenError(Kind.MIXED, f"{origin.version} said {before[:60]!r} before, now {text[:60]!r}")
        return origin


def _object(data: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        raise BrokenError(Kind.MALFORMED, f"not JSON: {data[:60]!r}") from None
    if not isinstance(value, dict):
        raise BrokenError(Kind.MALFORMED, f"not a JSON object: {data[:60]!r}")
    return value


def _chat_text(body: bytes) -> str:
    try:
        choice = _object(body)["choices"][0]
        return json.dumps([choice["message"], choice.get("finish_reason")], sort_keys=True)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise BrokenError(Kind.MALFORMED, f"not a chat completion: {body[:60]!r}") from None


def _stream_text(body: bytes) -> str:
    events = [
        line.removeprefix("data:").strip()
        for line in body.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
        if line.startswith("data:")
    ]
    if not events or events[-1] != "[DONE]":
        raise BrokenError(Kind.CUT, f"stream ends without [DONE], after {len(events)} events")
    identities: set[object] = set()
    said: list[str] = []
    for event in events[:-1]:
        chunk = _object(event)
        if "error" in chunk:
            raise BrokenError(Kind.CUT, f"error in the stream: {event[:120]}")
        identities.add(chunk.get("id"))
        try:
            for choice in chunk.get("choices", []):
                delta = choice.get("delta") or {}
                said.append((delta.get("reasoning_content") or "") + (delta.get("content") or ""))
                if choice.get("finish_reason"):
                    said.append(f" <{choice['finish_reason']}>")
        except (TypeError, AttributeError):
            raise BrokenError(Kind.MALFORMED, f"not a chat chunk: {event[:60]!r}") from None
    if len(identities) > 1:
        raise BrokenError(Kind.MIXED, f"one stream carries {len(identities)} completion ids")
    return "".join(said)
