"""Grammars of outputs that call tools, in the format that `tool_calls.py` parses.

They hold for outputs that must be calls, and for the calls of outputs that may be text if a function is `strict`.

A string may be any text, an argument with constants is one of them, any other value is JSON of its schema. Arguments
come in the order of the schema; those that are not required may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from service.chat.argument_types import ArgumentTypes
from service.chat.grammar_rules import quoted
from service.chat.json_schema import UnsupportedSchema, prepared, with_definitions
from service.engine.protocol import Grammar, json_rule

__all__ = ["grammar_of_calls", "grammar_of_strict_calls"]

CALL = "<tool_call>"
LONGEST = 1 << 20  # characters; the engine's limit for a grammar, GLM_MAX_SCHEMA, is lower


def grammar_of_calls(
    tools: Sequence[Mapping[str, Any]], *, single: bool = False, document: str | None = None, param: str = "tools"
) -> Grammar:
    """Return the grammar of an output that calls one of the tools, or several unless `single`.

    With a rule of the name `document`, the output may be such a document instead. Raises UnsupportedSchema.
    """
    calls = "call" if single else 'call ("\\n"? call)*'
    start = ["start: calls"] if document is None else ["start: calls | document", document]
    return Grammar("\n".join([*start, f'calls: "\\n"? {calls}', *_rules_of_calls(tools)]), param)


def grammar_of_strict_calls(tools: Sequence[Mapping[str, Any]], *, single: bool = False) -> Grammar:
    """Return the grammar of an output from the first call on, in which calls of strict functions conform.

    Those of other functions may have any arguments. Raises UnsupportedSchema.
    """
    held = [tool if tool["function"].get("strict") else _loosened(tool) for tool in tools]
    start = "start: body" if single else 'start: body ("\\n"? call)*'
    return Grammar("\n".join([start, *_rules_of_calls(held)]), "tools", after=CALL)


def _loosened(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"function": {"name": tool["function"]["name"], "parameters": {"type": "object"}}}


def _rules_of_calls(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the rules `call`, and `body`, which is the rest of a call after its first token."""
    rules = _Rules()
    names = [rules.call(tool["function"]) for tool in tools]
    return [f"call: {CALL} body", f"body: {' | '.join(names)}", *rules.lines, "text: /(?s:.*)/"]


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
        if function.get("strict"):
            prepared(parameters)  # the rules read the properties alone; what cannot be held beside them is refused
        arguments = " ".join(self._arguments(name, parameters))
        self._add(f"{name}: {quoted(function['name'])} {quoted(chr(10))} {arguments} </tool_call>")
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
            self._argument(rule, quoted(key), self._value(rule, types, key, with_definitions(schema, parameters)))
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
            return f"({' | '.join(quoted(_written(one)) for one in constants)})"
        if types.may_be_text(key):
            return "text"
        self._add(json_rule(f"{rule}_value", prepared(schema)))
        return f"{rule}_value"


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
