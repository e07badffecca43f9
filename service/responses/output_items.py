"""The items of a response, and the events of a stream that tell how they grow."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from service.chat.output_parser import ParsedText
from service.chat.response import GeneratedToken
from service.chat.tool_calls import CallPiece

__all__ = ["Event", "OutputItems"]

Event = dict[str, Any]
Status = Literal["completed", "incomplete"]


class OutputItems:
    """Makes the items of what is parsed: reasoning, messages and function calls, in the order of the output.

    `feed` and `close` yield the events, which still lack their numbers.
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        """Those that are complete."""
        self._open: _Reasoning | _Text | _Call | None = None
        self._tokens: list[GeneratedToken] = []

    def feed(self, parsed: ParsedText, tokens: Sequence[GeneratedToken] = ()) -> Iterator[Event]:
        """Add a piece of the output. Of `tokens`, those of texts are kept: reasoning and calls have none."""
        self._tokens += tokens
        if parsed.reasoning:
            yield from self._enter(_Reasoning)
            yield from self._write(parsed.reasoning)
        if parsed.content:
            yield from self._enter(_Text)
            yield from self._write(parsed.content)
        for piece in parsed.calls:
            if piece.name is not None:
                yield from self._leave("completed")
                yield from self._begin(_Call(len(self.items), piece))
            if piece.arguments:
                yield from self._write(piece.arguments)

    def close(self, status: Status) -> Iterator[Event]:
        """End the last item; `incomplete` if the output was cut off."""
        yield from self._leave(status)

    def _enter(self, kind: type[_Reasoning] | type[_Text]) -> Iterator[Event]:
        if not isinstance(self._open, kind):
            yield from self._leave("completed")
            yield from self._begin(kind(len(self.items)))

    def _begin(self, item: _Reasoning | _Text | _Call) -> Iterator[Event]:
        self._open = item
        yield {"type": "response.output_item.added", "output_index": item.index, "item": item.begun()}
        if part := item.part(""):
            yield item.event("response.content_part.added", part=part)

    def _write(self, text: str) -> Iterator[Event]:
        assert self._open
        tokens, self._tokens = self._tokens, []
        yield self._open.write(text, tokens)

    def _leave(self, status: Status) -> Iterator[Event]:
        item, self._open = self._open, None
        if item is None:
            return
        yield item.written()
        if part := item.part(item.text):
            yield item.event("response.content_part.done", part=part)
        whole = item.whole(status)
        self.items.append(whole)
        yield {"type": "response.output_item.done", "output_index": item.index, "item": whole}


class _Item:
    """An item that is being written."""

    prefix = ""
    delta = ""

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = f"{self.prefix}_{uuid.uuid4().hex}"
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def event(self, kind: str, **more: Any) -> Event:
        return {"type": kind, "item_id": self.id, "output_index": self.index, "content_index": 0, **more}

    def write(self, text: str, tokens: list[GeneratedToken]) -> Event:  # noqa: ARG002
        self._texts.append(text)
        return self.event(f"{self.delta}.delta", delta=text)

    def written(self) -> Event:
        return self.event(f"{self.delta}.done", text=self.text)

    def begun(self) -> dict[str, Any]:
        raise NotImplementedError

    def part(self, text: str) -> dict[str, Any] | None:
        raise NotImplementedError

    def whole(self, status: Status) -> dict[str, Any]:
        raise NotImplementedError


class _Reasoning(_Item):
    prefix, delta = "rs", "response.reasoning_text"

    def begun(self) -> dict[str, Any]:
        return {"id": self.id, "type": "reasoning", "summary": [], "content": [], "status": "in_progress"}

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}

    def whole(self, status: Status) -> dict[str, Any]:
        return self.begun() | {"content": [self.part(self.text)], "status": status}


class _Text(_Item):
    prefix, delta = "msg", "response.output_text"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._tokens: list[GeneratedToken] = []

    def begun(self) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "status": "in_progress", "content": []}

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._tokens if text else []}

    def write(self, text: str, tokens: list[GeneratedToken]) -> Event:
        self._tokens += tokens
        return super().write(text, tokens) | {"logprobs": tokens}

    def written(self) -> Event:
        return super().written() | {"logprobs": self._tokens}

    def whole(self, status: Status) -> dict[str, Any]:
        return self.begun() | {"content": [self.part(self.text)], "status": status}


class _Call(_Item):
    prefix, delta = "fc", "response.function_call_arguments"

    def __init__(self, index: int, piece: CallPiece) -> None:
        super().__init__(index)
        self._call = {"call_id": piece.id, "name": piece.name}

    def event(self, kind: str, **more: Any) -> Event:
        return {"type": kind, "item_id": self.id, "output_index": self.index, **more}

    def written(self) -> Event:
        return self.event(f"{self.delta}.done", name=self._call["name"], arguments=self.text)

    def begun(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function_call", **self._call, "arguments": "", "status": "in_progress"}

    def part(self, text: str) -> None:  # noqa: ARG002
        return None

    def whole(self, status: Status) -> dict[str, Any]:
        return self.begun() | {"arguments": self.text, "status": status}
