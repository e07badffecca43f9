"""Errors of a request's validation as the client is told them: the field's path, and what is wrong with its value."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from service.chat.errors import ApiError, invalid

__all__ = ["MAX_MESSAGE", "validation_error"]

MAX_MESSAGE = 300  # characters: some messages quote the input, which may be megabytes long

_WORDS = {
    "missing": "is required",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "finite_number": "must be a finite number",
    "none_required": "must be null",
    "literal_error": "must be {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "has too few characters (at least {min_length})",
    "string_too_long": "has too many characters (at most {max_length})",
    "string_pattern_mismatch": "must match the regular expression {pattern}",
    "string_unicode": "is not valid Unicode",
    "too_short": "has too few items (at least {min_length})",
    "too_long": "has too many items (at most {max_length})",
    "union_tag_invalid": "has a type that is not supported: it must be one of {expected_tags}",
    "union_tag_not_found": "must have a type",
}  # fmt: skip
"""What pydantic calls the errors that fields of a request can have."""

_TAGS = ("text", "image_url", "json_object", "json_schema")
"""Types of parts and formats: pydantic names them before the field, which may have the same name."""


def validation_error(error: ValidationError, document: Any) -> ApiError:
    """Convert the first error; `param` is its path in the request, such as messages[0].content[1].text."""
    detail = error.errors(include_url=False, include_input=False)[0]
    context = detail.get("ctx", {})
    path = _path((*detail["loc"], *([context["field"]] if detail["type"] == "unknown_field" else ())), document)
    words = _WORDS.get(detail["type"])
    message = (words.format_map(context) if words else detail["msg"])[:MAX_MESSAGE]
    return invalid(f"{path}: {message}" if path else message, param=path or context.get("param"))


def _path(location: tuple[int | str, ...], document: Any) -> str:
    path = ""
    value = document
    branch = None  # the object whose type is the last key that was left out
    for depth, key in enumerate(location):
        if isinstance(key, int):
            path += f"[{key}]"
            value = value[key] if isinstance(value, list) and key < len(value) else None
        elif isinstance(value, dict) and key in _TAGS and value.get("type") == key and value is not branch:
            branch = value
        elif isinstance(value, dict) and (key in value or depth == len(location) - 1):
            path += f".{key}" if path else key
            value = value.get(key)
        # A tag or any other key names a branch of a union in pydantic's schema and is not part of the request.
    return path[:MAX_MESSAGE]
