"""Calls of the client's tools, read from the answer's text as GLM writes them:

<tool_call>name
<arg_key>key</arg_key>
<arg_value>value</arg_value>
</tool_call>
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic_core

from service.chat.tags import withheld

__all__ = ["CallReader", "ToolCall"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
ARGUMENT = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """One call; `arguments` is the JSON text of an object."""

    id: str
    name: str
    arguments: str


class CallReader:
    """Takes the calls out of a text that comes in pieces.

    A call is known when it is complete. What looks like one and is none, for it is malformed, cut short or names no
    tool of the request, stays text.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._schemas = {tool["function"]["name"]: _properties(tool["function"]) for tool in tools}
        self._held = ""
        self._inside = False  # whether what is held begins with the opening mark, after white space
        self._searched = 0  # how far the closing mark was looked for
        self._called = False

    def feed(self, text: str) -> tuple[str, list[ToolCall]]:
        """Take a piece; returns the text that is certain to be no call, and the calls that are complete."""
        said, calls = "", []
        self._held += text
        while True:
            if not self._inside:
                said += self._before_a_call()
                if not self._inside:
                    break
            end = self._held.find(CLOSE, self._searched)
            if end < 0:
                self._searched = max(0, len(self._held) - len(CLOSE) + 1)
                break
            whole, call = self._held[: end + len(CLOSE)], None
            if whole.count("<arg_value>") > whole.count("</arg_value>"):  # the mark is part of a value
                self._searched = len(whole)
                continue
            call = self._parse(whole.lstrip()[len(OPEN) : -len(CLOSE)])
            self._held, self._inside, self._searched = self._held[len(whole) :], False, 0
            if call is None:
                said += whole
            else:
                calls.append(call)
                self._called = True
        return said, calls

    def end(self) -> str:
        """Return what was held back: the text ends here."""
        text, self._held = self._held, ""
        return "" if self._called and not text.strip() else text

    def _before_a_call(self) -> str:
        """Give out what precedes the next opening mark; the white space before a mark goes with it."""
        text = self._held
        begin = text.find(OPEN)
        certain = begin if begin >= 0 else len(text) - withheld(text, (OPEN,))
        said = text[:certain].rstrip()
        self._held, self._inside = text[len(said) :], begin >= 0
        return said

    def _parse(self, body: str) -> ToolCall | None:
        name, mark, _ = body.partition("<arg_key>")
        arguments, at = {}, len(name)
        name = name.strip()
        while mark and (found := ARGUMENT.match(body, at)):
            key = found[1].strip()
            arguments[key] = _value(found[2], self._schemas.get(name, {}).get(key))
            at = found.end()
        if name not in self._schemas or body[at:].strip():
            return None
        return ToolCall(f"call_{uuid.uuid4().hex[:24]}", name, json.dumps(arguments, ensure_ascii=False))


def _properties(function: Mapping[str, Any]) -> dict[str, Any]:
    found = (function.get("parameters") or {}).get("properties")
    return found if isinstance(found, dict) else {}


def _value(text: str, schema: Any) -> Any:
    """Read a value: as the string it is where the tool's schema says so, else as JSON if it is JSON."""
    kinds = schema.get("type") if isinstance(schema, dict) else None
    kinds = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if "string" in kinds and not ("null" in kinds and text.strip() == "null"):
        return text
    try:
        value = pydantic_core.from_json(text.strip(), allow_inf_nan=False)
        json.dumps(value, allow_nan=False)  # 1e999 is read as an infinity
    except ValueError:
        return text
    return value
