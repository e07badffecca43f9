"""Tool calls, parsed from the content in GLM's format:

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

from service.chat.tags import partial_tag

__all__ = ["ToolCall", "ToolCallParser"]

OPEN_TAG, CLOSE_TAG = "<tool_call>", "</tool_call>"
ARGUMENT = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """One call; `arguments` is a JSON object encoded as text."""

    id: str
    name: str
    arguments: str


class ToolCallParser:
    """Extracts tool calls from a text that arrives in pieces.

    A call is returned when it is complete. One that is malformed, cut off or names no tool of the request is returned
    as text, unchanged.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._schemas = {tool["function"]["name"]: _properties(tool["function"]) for tool in tools}
        self._held = ""
        self._in_call = False  # the held text begins with the opening tag, after optional white space
        self._searched = 0  # length of the held text already searched for the closing tag
        self._found_call = False

    def feed(self, text: str) -> tuple[str, list[ToolCall]]:
        """Add a piece; return the text that is certainly not part of a call, and the calls that are complete."""
        content, calls = "", []
        self._held += text
        while True:
            if not self._in_call:
                content += self._take_content()
                if not self._in_call:
                    break
            end = self._held.find(CLOSE_TAG, self._searched)
            if end < 0:
                self._searched = max(0, len(self._held) - len(CLOSE_TAG) + 1)
                break
            element = self._held[: end + len(CLOSE_TAG)]
            if element.count("<arg_value>") > element.count("</arg_value>"):  # the closing tag is part of a value
                self._searched = len(element)
                continue
            call = self._parse(element.lstrip()[len(OPEN_TAG) : -len(CLOSE_TAG)])
            self._held, self._in_call, self._searched = self._held[len(element) :], False, 0
            if call is None:
                content += element
            else:
                calls.append(call)
                self._found_call = True
        return content, calls

    def flush(self) -> str:
        """Return the text held back, at the end of the input; white space after a call is dropped."""
        text, self._held = self._held, ""
        return "" if self._found_call and not text.strip() else text

    def _take_content(self) -> str:
        """Remove and return the held text before the next opening tag; white space before the tag stays with it."""
        text = self._held
        begin = text.find(OPEN_TAG)
        end = begin if begin >= 0 else len(text) - partial_tag(text, (OPEN_TAG,))
        content = text[:end].rstrip()
        self._held, self._in_call = text[len(content) :], begin >= 0
        return content

    def _parse(self, body: str) -> ToolCall | None:
        name, tag, _ = body.partition("<arg_key>")
        arguments, at = {}, len(name)
        name = name.strip()
        while tag and (argument := ARGUMENT.match(body, at)):
            key = argument[1].strip()
            arguments[key] = _parse_value(argument[2], self._schemas.get(name, {}).get(key))
            at = argument.end()
        if name not in self._schemas or body[at:].strip():
            return None
        return ToolCall(f"call_{uuid.uuid4().hex[:24]}", name, json.dumps(arguments, ensure_ascii=False))


def _properties(function: Mapping[str, Any]) -> dict[str, Any]:
    properties = (function.get("parameters") or {}).get("properties")
    return properties if isinstance(properties, dict) else {}


def _parse_value(text: str, schema: Any) -> Any:
    """Return the text itself if the tool's schema allows a string, otherwise its JSON value if it is valid JSON."""
    types = schema.get("type") if isinstance(schema, dict) else None
    types = [types] if isinstance(types, str) else types if isinstance(types, list) else []
    if "string" in types and not ("null" in types and text.strip() == "null"):
        return text
    try:
        value = pydantic_core.from_json(text.strip(), allow_inf_nan=False)
        json.dumps(value, allow_nan=False)  # 1e999 is parsed as infinity, which JSON cannot represent
    except ValueError:
        return text
    return value
