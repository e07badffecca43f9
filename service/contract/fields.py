"""Dataclasses from JSON: unknown fields are ignored, wrong types are refused."""

from __future__ import annotations

import json
import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

__all__ = ["from_document", "from_json"]

T = TypeVar("T")


def from_json(kind: type[T], text: bytes | str) -> T:
    """Parse the JSON object `text` as the dataclass `kind`; raises ValueError that names the field at fault."""
    return from_document(kind, json.loads(text))


def from_document(kind: type[T], document: object, where: str = "") -> T:
    """Make the dataclass `kind` from a parsed JSON object; raises ValueError that names the field at fault.

    `where` is the path of the object in the document, for the message.
    """
    if not isinstance(document, dict):
        raise ValueError(f"{where or 'the document'} is not a JSON object")  # noqa: TRY004  (bad data, not a bad call)
    values = {}
    for name, (hint, required) in _fields(cast("Any", kind)).items():
        place = f"{where}.{name}" if where else name
        if name in document:
            values[name] = _value(hint, document[name], place)
        elif required:
            raise ValueError(f"{place} is missing")
    return kind(**values)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    hints = get_type_hints(kind)
    return {
        field.name: (hints[field.name], field.default is MISSING and field.default_factory is MISSING)
        for field in fields(kind)
        if field.init
    }


def _value(hint: Any, value: object, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(argument for argument in arguments if argument is not type(None)), value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{where} is {value!r}, not one of {', '.join(map(repr, arguments))}")
    if origin in (list, tuple, frozenset) and isinstance(value, list):
        return origin(_value(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {str(key): _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(hint):
        return from_document(cast("type[Any]", hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where} is {type(value).__name__}, not {getattr(origin or hint, '__name__', hint)}")
