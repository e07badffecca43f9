"""Validation of responses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from deploy.loadtest.losses import LossKind, RequestLost
from deploy.loadtest.requests import BodyType, Request
from deploy.loadtest.responses import Response

VERSION = "x-model-version"
REQUIRED_HEADERS = (VERSION, "x-slot", "x-request-id")


@dataclass(frozen=True, slots=True)
class Origin:
    """The version and the slot that a response was sent by, from its headers.

    The head of a stream that waited may lack the version; then it is that of the events.
    """

    version: str
    slot: str


class ResponseValidator:
    """Compares responses with what their requests require, and with earlier responses of the same version.

    With greedy decoding the request and the version determine the text, so that two different texts for one request and
    version mean that at least a part of one came from another model. This requires arithmetic that does not depend on
    the rest of the batch. In bf16 it does depend on it: `compare=False` disables this comparison alone.
    """

    def __init__(self, *, compare: bool = True) -> None:
        self._compare = compare
        self._texts: dict[tuple[str, bytes], str] = {}

    def validate(self, request: Request, response: Response) -> Origin:
        """Return the origin of a correct response; raises RequestLost for any other."""
        if response.status != 200:
            body = response.body[:120].decode(errors="replace")
            raise RequestLost(LossKind.STATUS, f"{response.status} {response.reason}: {body}")
        text: str | None = None
        version = response.headers.get(VERSION)
        if request.body_type is BodyType.STREAM:
            text, version = _stream_text(response.body, version)
        for name in REQUIRED_HEADERS:
            if not (version if name == VERSION else response.headers.get(name)):
                raise RequestLost(LossKind.HEADER, f"200 without {name}")
        origin = Origin(version or "", response.headers["x-slot"])
        match request.body_type:
            case BodyType.VERSION:
                named = _object(response.body).get("version")
                if named != origin.version:
                    raise RequestLost(
                        LossKind.MIXED, f"version {named!r} in the body, {origin.version!r} in the header"
                    )
            case BodyType.MODELS:
                if not isinstance(_object(response.body).get("data"), list):
                    raise RequestLost(LossKind.MALFORMED, f"not a list of models: {response.body[:60]!r}")
            case BodyType.CHAT:
                text = _chat_text(response.body)
        if text is not None and self._compare:
            earlier = self._texts.setdefault((origin.version, request.body), text)
            if earlier != text:
                detail = f"{origin.version} sent {earlier[:60]!r} earlier, now {text[:60]!r}"
                raise RequestLost(LossKind.MIXED, detail)
        return origin


def _object(data: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        raise RequestLost(LossKind.MALFORMED, f"not JSON: {data[:60]!r}") from None
    if not isinstance(value, dict):
        raise RequestLost(LossKind.MALFORMED, f"not a JSON object: {data[:60]!r}")
    return value


def _chat_text(body: bytes) -> str:
    try:
        choice = _object(body)["choices"][0]
        return json.dumps([choice["message"], choice.get("finish_reason")], sort_keys=True)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise RequestLost(LossKind.MALFORMED, f"not a chat completion: {body[:60]!r}") from None


def _stream_text(body: bytes, header: str | None) -> tuple[str, str | None]:
    """Return the text of a stream, and the version of its head or else of its events, which must not differ."""
    events = [
        line.removeprefix("data:").strip()
        for line in body.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
        if line.startswith("data:")
    ]
    if not events or events[-1] != "[DONE]":
        raise RequestLost(LossKind.CUT, f"stream ends without [DONE], after {len(events)} events")
    ids: set[object] = set()
    versions: set[str] = {header} if header else set()
    text: list[str] = []
    for event in events[:-1]:
        chunk = _object(event)
        if "error" in chunk:
            raise RequestLost(LossKind.CUT, f"error in the stream: {event[:120]}")
        ids.add(chunk.get("id"))
        versions |= {chunk["system_fingerprint"]} if chunk.get("system_fingerprint") else set()
        try:
            for choice in chunk.get("choices", []):
                delta = choice.get("delta") or {}
                text.append((delta.get("reasoning_content") or "") + (delta.get("content") or ""))
                if choice.get("finish_reason"):
                    text.append(f" <{choice['finish_reason']}>")
        except (TypeError, AttributeError):
            raise RequestLost(LossKind.MALFORMED, f"not a chat chunk: {event[:60]!r}") from None
    if len(ids) > 1:
        raise RequestLost(LossKind.MIXED, f"{len(ids)} completion ids in one stream")
    if len(versions) > 1:
        raise RequestLost(LossKind.MIXED, f"versions {', '.join(sorted(versions))} in one stream")
    return "".join(text), next(iter(versions), None)
