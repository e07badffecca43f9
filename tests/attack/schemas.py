"""JSON schemas that kill a process which compiles them without limits."""

from __future__ import annotations

from typing import Any

__all__ = ["DEADLY", "chain"]


def chain(length: int, last: Any = None, link: str = "$ref") -> dict[str, Any]:
    """References to references, or arrays of arrays, through definitions, to a string or to `last`."""

    def step(number: int) -> dict[str, Any]:
        reference = {"$ref": f"#/$defs/a{number}"}
        return reference if link == "$ref" else {"type": "array", "items": reference}

    definitions = {f"a{number}": step(number + 1) for number in range(length)}
    return {**step(0), "$defs": {**definitions, f"a{length}": {"type": "string"} if last is None else last}}


DEADLY = {
    "references": chain(3000),
    "arrays": chain(3000, link="items"),
    "patterns": {"allOf": [{"type": "string", "pattern": f"a{number}.*b"} for number in range(30)]},
}
