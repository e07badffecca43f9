"""JSON schemas of requests, as the grammar compiler takes them.

Keywords that only describe are left out, and so are those that the output cannot be held to while it is written, but
that libraries write of themselves: `uniqueItems`, `propertyNames`, formats that are not known, and patterns that look
ahead or behind. Of alternatives those with such a pattern are left out if there are others: a decimal of pydantic's, a
number or such a string, is a number. `oneOf` is read as `anyOf`. What else would be ignored is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["UnsupportedSchema", "prepared", "with_definitions"]

FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)  # fmt: skip
REFUSED = frozenset(
    ("not", "if", "then", "else", "contains", "minContains", "maxContains", "dependentRequired", "dependentSchemas",
     "dependencies", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef")
)  # fmt: skip
LEFT_OUT = frozenset(
    ("uniqueItems", "propertyNames", "discriminator", "title", "description", "default", "examples", "example",
     "deprecated", "readOnly", "writeOnly", "$comment", "x-guidance", "contentEncoding", "contentMediaType",
     "contentSchema", "nullable", "strict", "$schema", "$id", "xml", "externalDocs")
)  # fmt: skip
MAPS = ("properties", "patternProperties", "$defs", "definitions")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
PARTS = ("items", "additionalProperties", "additionalItems")
LOOK_AROUND = re.compile(r"\(\?<?[=!]|\\[1-9]")


class UnsupportedSchema(ValueError):
    """The schema has a keyword that is not supported; the message names it."""


def prepared(schema: Any) -> Any:
    """Return a schema without what is left out; raises UnsupportedSchema."""
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in REFUSED:
            raise UnsupportedSchema(f"the keyword {key} is not supported")
        if key in LEFT_OUT or (key == "format" and value not in FORMATS):
            continue
        if key == "pattern" and _looks_around(value):
            continue
        if key in MAPS and isinstance(value, dict):
            found[key] = {name: prepared(part) for name, part in value.items()}
        elif key in LISTS and isinstance(value, list):
            name = "anyOf" if key == "oneOf" and "anyOf" not in schema else key
            found[name] = [prepared(part) for part in (_held(value) if name == "anyOf" else value)]
        elif key in PARTS:
            found[key] = [prepared(part) for part in value] if isinstance(value, list) else prepared(value)
        else:
            found[key] = value
    return found


def _looks_around(pattern: Any) -> bool:
    return isinstance(pattern, str) and LOOK_AROUND.search(pattern) is not None


def _held(alternatives: list[Any]) -> list[Any]:
    """Return the alternatives without those whose pattern would be left out; all of them if there are no others."""
    return [
        part for part in alternatives if not (isinstance(part, dict) and _looks_around(part.get("pattern")))
    ] or alternatives


def with_definitions(schema: Any, root: dict[str, Any]) -> Any:
    """Return a part of the schema `root` with those of its definitions that the part refers to, directly or not."""
    if not isinstance(schema, dict):
        return schema
    found: dict[str, dict[str, Any]] = {}
    waiting: list[Any] = [schema]
    while waiting:
        for reference in _references(waiting.pop()):
            _, table, name, *_ = [*reference.split("/"), "", ""]
            name = name.replace("~1", "/").replace("~0", "~")
            if table in ("$defs", "definitions") and name in root.get(table, {}) and name not in found.get(table, {}):
                found.setdefault(table, {})[name] = root[table][name]
                waiting.append(root[table][name])
    return {**schema, **found}


def _references(schema: Any) -> Iterator[str]:
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
