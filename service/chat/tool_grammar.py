"""Grammars of outputs that call tools, in the format that `tool_calls.py` parses, for requests that demand a call.

A string may be any text, an argument with constants is one of them, any other value is JSON of its schema. Arguments
come in the order of the schema; those that are not required may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from service.chat.argument_types import ArgumentTypes
from service.chat.json_schema import UnsupportedSchema, prepared, with_definitions
from service.engine.protocol import Grammar, json_rule

__all__ = ["grammar_of_calls"]

LONGEST = 1 << 20  # characters; the engine's limit for a grammar, GLM_MAX_SCHEMA, is lower


def grammar_of_calls(
    tools: Sequence[Mapping[str, Any]], *, single: bool = False, document: Any = None, param: str = "tools"
) -> Grammar:
    """Return the grammar of an output that calls one of the tools, or several unless `single`.

    With a `document`, which is a JSON schema, the output may be such a document instead. Raises UnsupportedSchema.
    """
    rules = _Rules()
    names = [rules.call(tool["function"]) for tool in tools]
    calls = "call" if single else 'call ("\\n"? call)*'
    start = ["start: calls"] if document is None else ["start: calls | document", json_rule("document", document)]
    head = [*start, f'calls: "\\n"? {calls}', f"call: {' | '.join(names)}"]
    return Grammar("\n".join([*head, *rules.lines, "text: /(?s:.*)/"]), param)


class _Rules:
    """The rules of the calls, in the compiler's dialect of Lark, where `<tag>` is a token of the tokenizer."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._calls = 0
        self._size = 0  # characters of the rules so far

    def call(self, function: Mapping[str, Any]) -> str:
        """Add the rule of a call of this function, and return its name."""
        name = f"call_{self._calls}"
        self._calls += 1
        parameters = function.get("parameters") or {}
        arguments = " ".join(self._arguments(name, parameters))
        self._add(f"{name}: <tool_call> {_quoted(function['name'])} {_quoted(chr(10))} {arguments} </tool_call>")
        return name

    def _add(self, rule: str) -> None:
        """Add a rule; definitions that many arguments refer to are repeated in each, and so might fill the memory."""
        self._size += len(rule)
        if self._size > LONGEST:
            raise UnsupportedSchema(f"its grammar has more than {LONGEST} characters")
        self.lines.append(rule)

    def _arguments(self, call: str, parameters: dict[str, Any]) -> list[str]:
        types = ArgumentTypes(parameters)
        found = []
        for number, (key, schema) in enumerate(types.properties.items()):
            rule = f"{call}_{number}"
            self._argument(rule, _quoted(key), self._value(rule, types, key, with_definitions(schema, parameters)))
            found.append(rule if key in types.required else f"{rule}?")
        if not found and parameters.get("additionalProperties", True) is not False:
            self._argument(f"{call}_any", "text", "text")
            return [f"{call}_any*"] if parameters.get("type") == "object" and "properties" not in parameters else []
        return found

    def _argument(self, rule: str, key: str, value: str) -> None:
        self._add(f'{rule}: <arg_key> {key} </arg_key> "\\n" <arg_value> {value} </arg_value> "\\n"')

    def _value(self, rule: str, types: ArgumentTypes, key: str, schema: Any) -> str:
        constants = types.constants(key)
        if constants:
            return f"({' | '.join(_quoted(_written(one)) for one in constants)})"
        if types.may_be_text(key):
            return "text"
        self._add(json_rule(f"{rule}_value", prepared(schema)))
        return f"{rule}_value"


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
