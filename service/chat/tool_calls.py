"""Tool calls, parsed from the output in GLM's format:

<tool_call>name
<arg_key>key</arg_key>
<arg_value>value</arg_value>
</tool_call>
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from service.chat.argument_types import ArgumentTypes
from service.chat.tags import partial_tag

__all__ = ["CallPiece", "ToolCall", "ToolCallParser", "joined"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
KEY, END_KEY, VALUE, END_VALUE = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
LONGEST_NAME = 128  # characters between the tag and the first argument; names have at most 64


@dataclass(frozen=True)
class ToolCall:
    """One call; `arguments` is a JSON object encoded as text."""

    id: str
    name: str
    arguments: str


class CallPiece(NamedTuple):
    """A piece of the call with a number; the first one has its id and name."""

    number: int
    arguments: str
    id: str | None = None
    name: str | None = None


def joined(pieces: Iterable[CallPiece]) -> tuple[ToolCall, ...]:
    """Return the calls that pieces make up."""
    found: dict[int, ToolCall] = {}
    for piece in pieces:
        call = found.get(piece.number) or ToolCall(piece.id or "", piece.name or "", "")
        found[piece.number] = ToolCall(call.id, call.name, call.arguments + piece.arguments)
    return tuple(found.values())


class ToolCallParser:
    """Extracts tool calls from a text that arrives in pieces, and returns them while they are written.

    A call begins with the name of a tool of the request; what does not is text, and is returned unchanged. A string
    is passed on as it arrives, any other argument when it is complete. A call that is cut off stays so: its arguments
    are no complete JSON, since nobody should run half of it. If `single`, all calls but the first are dropped.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]], *, single: bool = False) -> None:
        self._functions = {tool["function"]["name"]: tool["function"] for tool in tools}
        self._single = single
        self._held = ""
        self._searched = 0  # length of the held text that has no part of the tag that it is searched for
        self._state = self._in_text
        self._pieces: list[CallPiece] = []
        self._calls = 0
        self._begun = ""  # the text of a call that may not be one
        self._name = self._key = ""
        self._types = ArgumentTypes(None)
        self._keys: set[str] = set()

    def feed(self, text: str) -> tuple[str, list[CallPiece]]:
        """Add a piece; return the text that is certainly not part of a call, and the pieces of calls."""
        self._held += text
        content = ""
        while (found := self._state()) is not None:
            content += found
        pieces, self._pieces = self._pieces, []
        return content, pieces

    def flush(self, *, is_complete: bool = True) -> tuple[str, list[CallPiece]]:
        """Return what was held back, at the end of the input; white space after a call is dropped.

        `is_complete`: the model has ended the output, which was not cut off. Then a call need not be closed. What can
        only be the beginning of a call that was cut off is no text.
        """
        text, self._held = self._begun + self._held, ""
        if not is_complete and self._state in (self._in_first_key, self._after_first_key):
            self._begin()
        elif self._state in (self._in_text, self._in_name, self._in_first_key, self._after_first_key):
            is_cut = not is_complete and self._state == self._in_name and self._begins_name(text)
            return ("" if is_cut or (self._calls and not text.strip()) else text), []
        if self._state == self._between and is_complete:
            self._end()
        pieces, self._pieces = self._pieces, []
        return "", pieces

    def _begins_name(self, text: str) -> bool:
        """Whether a text is a tag with the beginning of a function's name, or a name and a part of the next tag."""
        name = text.lstrip().removeprefix(OPEN).partition("<")[0].strip()
        return any(function.startswith(name) for function in self._functions)

    # Each state takes what it can from the held text and returns the content in it; None if it needs more text.

    def _in_text(self) -> str | None:
        text = self._held
        begin = text.find(OPEN)
        end = begin if begin >= 0 else len(text) - partial_tag(text, (OPEN,))
        content = text[:end].rstrip()
        if begin < 0:
            self._held = text[len(content) :]
            return content or None
        self._begun = text[len(content) : begin + len(OPEN)]
        self._held = text[begin + len(OPEN) :]
        self._state = self._in_name
        return content

    def _in_name(self) -> str | None:
        name, tag, rest = self._held.partition("<")
        is_call = name.strip() in self._functions
        tags = [one for one in (KEY, CLOSE) if one.startswith((tag + rest)[: len(one)])]
        if not tag and len(name) <= LONGEST_NAME:
            return None
        if not is_call or not tags:
            return self._give_up()
        if not (tag + rest).startswith(tags[0]):
            return None
        self._name = name.strip()
        self._types = ArgumentTypes(self._functions[self._name].get("parameters"))
        if tags[0] == CLOSE:
            self._held = rest[len(CLOSE) - 1 :]
            self._begin()
            self._end()
        else:
            self._begun += name + KEY
            self._held = rest[len(KEY) - 1 :]
            self._state = self._in_first_key
        return ""

    def _in_first_key(self) -> str | None:
        if (key := self._take_until(END_KEY)) is None:
            return None
        self._key = key.strip()
        self._begun += key + END_KEY
        self._state = self._after_first_key
        return ""

    def _after_first_key(self) -> str | None:
        text = self._held.lstrip()
        if text.startswith(VALUE):
            self._begin()
            return self._enter_value(text)
        return None if VALUE.startswith(text) else self._give_up()

    def _between(self) -> str | None:
        """After the first argument; what is no argument is dropped."""
        found = [(self._held.find(tag), tag) for tag in (KEY, CLOSE) if tag in self._held]
        if not found:
            self._held = self._held[len(self._held) - partial_tag(self._held, (KEY, CLOSE)) :]
            return None
        at, tag = min(found)
        self._held = self._held[at + len(tag) :]
        if tag == CLOSE:
            self._end()
        else:
            self._state = self._in_key
        return ""

    def _in_key(self) -> str | None:
        if (key := self._take_until(END_KEY)) is None:
            return None
        self._key, self._state = key.strip(), self._after_key
        return ""

    def _after_key(self) -> str | None:
        text = self._held.lstrip()
        if text.startswith(VALUE):
            return self._enter_value(text)
        if VALUE.startswith(text):
            return None
        self._state = self._between
        return ""

    def _enter_value(self, text: str) -> str:
        self._held = text[len(VALUE) :]
        if self._key in self._keys:
            self._state = self._in_repeated_value
        else:
            self._state = self._before_text if self._types.is_text(self._key) else self._in_value
        return ""

    def _in_value(self) -> str | None:
        if (value := self._take_until(END_VALUE)) is None:
            return None
        self._begin_argument(_dump(self._types.value(self._key, value)))
        return self._leave_value()

    def _in_repeated_value(self) -> str | None:
        """The value of an argument that has one already."""
        return None if self._take_until(END_VALUE) is None else self._leave_value()

    def _before_text(self) -> str | None:
        """At the begin of a string, which may still be null."""
        text = self._held
        if END_VALUE in text:
            return self._in_value()
        if "null".startswith(text[: len(text) - partial_tag(text, (END_VALUE,))].strip()):
            return None
        self._begin_argument('"')
        self._state = self._in_text_value
        return ""

    def _in_text_value(self) -> str | None:
        value, tag, rest = self._held.partition(END_VALUE)
        if tag:
            self._held = rest
            self._emit(_dump(value)[1:-1] + '"')
            return self._leave_value()
        end = len(value) - partial_tag(value, (END_VALUE,))
        if end:
            self._emit(_dump(value[:end])[1:-1])
        self._held = value[end:]
        return None

    def _leave_value(self) -> str:
        self._keys.add(self._key)
        self._state = self._between
        return ""

    def _take_until(self, tag: str) -> str | None:
        """Remove and return the held text before a tag, and remove the tag; None if it is not there yet."""
        at = self._held.find(tag, self._searched)
        if at < 0:
            self._searched = max(0, len(self._held) - len(tag) + 1)
            return None
        text, self._held, self._searched = self._held[:at], self._held[at + len(tag) :], 0
        return text

    def _give_up(self) -> str:
        """Return what was no call after all; a call may begin in what follows its tag."""
        text, self._begun = self._begun, ""
        self._state = self._in_text
        return text

    def _begin(self) -> None:
        self._begun = ""
        self._keys = set()
        self._calls += 1
        self._emit("", f"call_{uuid.uuid4().hex[:24]}", self._name)

    def _begin_argument(self, value: str) -> None:
        self._emit(f"{', ' if self._keys else '{'}{_dump(self._key)}: {value}")

    def _end(self) -> None:
        self._emit("}" if self._keys else "{}")
        self._state = self._in_text

    def _emit(self, arguments: str, identity: str | None = None, name: str | None = None) -> None:
        if not (self._single and self._calls > 1):
            self._pieces.append(CallPiece(self._calls - 1, arguments, identity, name))


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
