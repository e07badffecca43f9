"""The JSON value of a function's argument that the model wrote as text, by the function's schema.

The model writes strings as they are and everything else as JSON; of `5` the schema alone tells whether it is a string.
Only what tells types apart is read of a schema, however it is spelled: `type`, `enum`, `const`, `$ref`, `anyOf`,
`oneOf` and `allOf`. Patterns are not: they come from clients, and to match them may take for ever.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic_core

__all__ = ["ArgumentTypes"]

LONGEST_LITERAL = 1 << 14  # characters of a value that is read as Python's, which takes long
FEW = 4  # references and parts in which constants are looked for
DEEPEST = 100  # references and parts within each other; those beyond accept everything

_NAMES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (dict,),
    "array": (list,),
}
_ABSENT = object()


class ArgumentTypes:
    """The types of one function's arguments. `parameters` is the function's JSON schema, of an object."""

    def __init__(self, parameters: Mapping[str, Any] | None) -> None:
        self._root = parameters or {}
        root = _Schema(self._root, self._root)
        self.properties = root.properties()
        """The schemas of the arguments by name, in their order."""
        self.required = root.required()
        """The names of those that must be there."""

    def is_text(self, name: str) -> bool:
        """Whether the argument is a string or null, so that any text but `null` is its value before it is complete."""
        schema = self._of(name)
        return schema.accepts("\0") and not any(map(schema.accepts, (0, 0.5, True, {}, [])))

    def may_be_text(self, name: str) -> bool:
        """Whether the argument may be any string."""
        return self._of(name).accepts("\0")

    def constants(self, name: str) -> list[Any]:
        """Return the values that the argument may have; nothing if they are not listed."""
        return self._of(name).constants() or []

    def value(self, name: str, text: str) -> Any:
        """Return the argument's value: the first reading of the text that the schema accepts, else the text itself."""
        schema = self._of(name)
        found = next((value for value in self._readings(text, schema) if schema.accepts(value)), text)
        if isinstance(found, float) and found.is_integer() and not schema.accepts(0.5):
            return int(found) if abs(found) < sys.float_info.max else text
        return found

    def _of(self, name: str) -> _Schema:
        return _Schema(self.properties.get(name, True), self._root)

    @staticmethod
    def _readings(text: str, schema: _Schema) -> Iterator[Any]:
        found = _json(text)
        if text == "null" or isinstance(found, dict | list):
            yield found
        if not schema.accepts(_ABSENT):  # it names types: a string is no number
            yield text
        if found is not _ABSENT:
            yield found
        if (found := _python(text)) is not _ABSENT:
            yield found


class _Schema:
    """A part of the schema `root`."""

    def __init__(self, schema: Any, root: Mapping[str, Any]) -> None:
        self._schema, self._root = schema, root

    def accepts(self, value: Any) -> bool:
        """Return whether a value is of one of the types, and one of the constants, that the schema names."""
        return self._accepts(self._schema, value, {}, 0)

    def properties(self) -> dict[str, Any]:
        """Return the schemas of an object's properties, also those in references and in parts of the schema."""
        found: dict[str, Any] = {}
        waiting, seen = [self._schema], set()
        while waiting:
            schema = waiting.pop()
            if not isinstance(schema, dict) or id(schema) in seen:
                continue
            seen.add(id(schema))
            properties = schema.get("properties")
            if isinstance(properties, dict):
                found = {**properties, **found}
            waiting += [part for key in ("anyOf", "oneOf", "allOf") for part in _list(schema.get(key))]
            waiting.append(self._target(schema))
        return found

    def required(self) -> set[str]:
        """Return the names that `required` has, also in references and in all parts of the schema."""
        found: set[str] = set()
        waiting, seen = [self._schema], set()
        while waiting:
            schema = waiting.pop()
            if isinstance(schema, dict) and id(schema) not in seen:
                seen.add(id(schema))
                found |= {name for name in _list(schema.get("required")) if isinstance(name, str)}
                waiting += [*_list(schema.get("allOf")), self._target(schema)]
        return found

    def constants(self) -> list[Any] | None:
        """Return the values that the schema lists with `enum` and `const`; None if it does not list all."""
        return self._constants(self._schema, 0)

    def _constants(self, schema: Any, depth: int) -> list[Any] | None:
        if not isinstance(schema, dict) or depth > FEW:
            return None
        if "const" in schema:
            return [schema["const"]]
        if isinstance(schema.get("enum"), list):
            return list(schema["enum"])
        for key in ("anyOf", "oneOf"):
            parts = [self._constants(part, depth + 1) for part in _list(schema.get(key))]
            if parts and None not in parts:
                return [value for part in parts for value in part or ()]
        parts = [self._constants(part, depth + 1) for part in (*_list(schema.get("allOf")), self._target(schema))]
        return next((part for part in parts if part is not None), None)

    def _accepts(self, schema: Any, value: Any, known: dict[int, bool], depth: int) -> bool:
        """`known` has the answers for schemas that were asked before: references may form circles, and multiply."""
        if not isinstance(schema, dict) or depth > DEEPEST:
            return schema is not False
        if id(schema) not in known:
            known[id(schema)] = True
            known[id(schema)] = self._is_match(schema, value, known, depth + 1)
        return known[id(schema)]

    def _is_match(self, schema: dict[str, Any], value: Any, known: dict[int, bool], depth: int) -> bool:
        types = [one for one in _list(schema.get("type")) if isinstance(one, str)]
        if types and not any(_is_of(value, one) for one in types):
            return False
        if isinstance(schema.get("enum"), list) and not any(_equal(value, one) for one in schema["enum"]):
            return False
        if "const" in schema and not _equal(value, schema["const"]):
            return False
        for key in ("anyOf", "oneOf"):
            parts = _list(schema.get(key))
            if parts and not any(self._accepts(part, value, known, depth) for part in parts):
                return False
        required = [*_list(schema.get("allOf")), self._target(schema)]
        return all(self._accepts(part, value, known, depth) for part in required)

    def _target(self, schema: dict[str, Any]) -> Any:
        """Return what `$ref` refers to; True, which accepts everything, if that is not in this schema."""
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return True
        found: Any = self._root
        for key in reference[1:].split("/")[1:]:
            name = key.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                return True
            found = found[name]
        return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_of(value: Any, name: str) -> bool:
    types = _NAMES.get(name)
    if types is None:
        return True
    if isinstance(value, bool):
        return bool in types
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, types)


def _equal(value: Any, constant: Any) -> bool:
    return value == constant and isinstance(value, bool) is isinstance(constant, bool)


def _json(text: str) -> Any:
    """Return the JSON value of a text; _ABSENT if it is not JSON."""
    try:
        value = _finite(pydantic_core.from_json(text.strip(), allow_inf_nan=False))
        json.dumps(value)  # an integer of more than 4,300 digits has no text
    except ValueError:
        return _ABSENT
    return value


def _finite(value: Any) -> Any:
    """Return a value with the largest number in place of infinity, which 1e999 is parsed as and JSON does not have."""
    if isinstance(value, float):
        return max(-sys.float_info.max, min(sys.float_info.max, value))
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _python(text: str) -> Any:
    """Return a constant, list or dictionary that was written as Python writes it; _ABSENT if the text is none."""
    if len(text) > LONGEST_LITERAL:
        return _ABSENT
    try:
        found = ast.literal_eval(text.strip())
        if not (found is None or isinstance(found, bool | dict | list | tuple)):
            return _ABSENT
        return pydantic_core.from_json(json.dumps(found, allow_nan=False))  # tuples become lists, keys become strings
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _ABSENT
