"""Dataclasses from JSON: unknown fields are ignored, wrong types and numbers out of range are refused."""

from __future__ import annotations

import json
import re
import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from service.contract import regular_file

__all__ = ["from_document", "from_json", "parse", "read"]

T = TypeVar("T")

_MAX_NUMBER = 1 << 63
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def read(kind: type[T], path: Path) -> T:
    """Read the JSON object in a file as the dataclass `kind`.

    Raises OSError if it cannot be read (`regular_file.read`), ValueError as `from_json` does.
    """
    return from_json(kind, regular_file.read(path))


def from_json(kind: type[T], text: bytes | str) -> T:
    """Parse the JSON object `text` as the dataclass `kind`; raises ValueError that names the field at fault."""
    return from_document(kind, parse(text))


def parse(text: bytes | str) -> object:
    """Parse JSON that may have been written by anyone; raises ValueError.

    Numbers are finite and below 2^63; in strings, control characters and lone surrogates are replaced, because they are
    displayed on terminals and sent to the service manager.
    """
    try:
        return _printable(json.loads(text, parse_int=_int, parse_float=_float, parse_constant=_float))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _int(text: str) -> int:
    if not abs(number := int(text)) < _MAX_NUMBER:
        raise ValueError(f"{text[:30]} is out of range")
    return number


def _float(text: str) -> float:
    if not abs(number := float(text)) < _MAX_NUMBER:  # also NaN
        raise ValueError(f"{text[:30]} is out of range")
    return number


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return value


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
        raise ValueError(f"{where} is {repr(value)[:100]}, not one of {', '.join(map(repr, arguments))}")
    if origin in (list, tuple, frozenset) and isinstance(value, list):
        return origin(_value(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {str(key): _value(arguments[1], item, f"{where}.{str(key)[:100]}") for key, item in value.items()}
    if is_dataclass(hint):
        return from_document(cast("type[Any]", hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where} is {type(value).__name__}, not {getattr(origin or hint, '__name__', hint)}")
