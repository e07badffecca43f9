"""The reference of the HTTP API, from the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.reference.markdown import GENERATED, table
from tests.test_app import client

__all__ = ["page"]

_REQUESTS = ("ChatRequest", "ResponsesRequest", "CompletionRequest", "NewBatch")
_WITHOUT_EFFECT, _REFUSED = "accepted without effect", "not supported"
_REFUSAL = "Refused with their name, unless the value is the one that changes nothing"


def page() -> str:
    """Return the page."""
    document = client().get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    return (
        f"{GENERATED}\n# HTTP API\n\n{document['info']['description']}\n\n`GET /openapi.json` is the whole schema; "
        "this page "
        "is made of it.\n\n"
        f"{table(('method', 'path', 'what', 'statuses'), _routes(document))}" + "".join(_bodies(schemas))
    )


def _routes(document: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            what = re.sub(r"^[A-Z]+ [^ :,]+?[:,.]? *(?= |$)", "", operation["summary"]).strip(" .")
            open_to_all = " (no key needed)" if operation.get("security") == [] else ""
            statuses = ", ".join(status for status in operation["responses"] if status != "default")
            yield method.upper(), f"`{path}`", what + open_to_all, statuses


def _bodies(schemas: dict[str, Any]) -> Iterator[str]:
    for name in _REQUESTS:
        schema = schemas[name]
        fields = schema["properties"]
        without_effect, refused = (
            sorted(key for key, field in fields.items() if mark in field.get("description", ""))
            for mark in (_WITHOUT_EFFECT, _REFUSED)
        )
        obeyed = {key: field for key, field in fields.items() if key not in {*without_effect, *refused}}
        text = schema["description"].partition("\n")[0]
        yield f"\n## {name}\n\n{text}\n\n"
        required = schema.get("required", [])
        yield table(
            ("field", "type", "meaning"),
            (
                (f"`{key}`" + (" (required)" if key in required else ""), _type(field), _meaning(field))
                for key, field in sorted(obeyed.items())
            ),
        )
        for keys, what in ((without_effect, "Accepted without effect on the answer"), (refused, _REFUSAL)):
            if keys:
                yield f"\n{what}: {', '.join(f'`{key}`' for key in keys)}.\n"


def _type(field: dict[str, Any]) -> str:
    """Return the type in one word or a few; null, which selects the default, is left out."""
    if "$ref" in field:
        return f"`{field['$ref'].rpartition('/')[2].rpartition('__')[2]}`"
    if "anyOf" in field or "oneOf" in field:
        parts = [_type(part) for part in field.get("anyOf", field.get("oneOf", [])) if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type", "any"))


def _meaning(field: dict[str, Any]) -> str:
    bounds = [
        f"{word} {part[key]}"
        for part in (field, *field.get("anyOf", []))
        for key, word in (("minimum", "at least"), ("maximum", "at most"), ("exclusiveMinimum", "above"))
        if key in part
    ]
    return "; ".join(filter(None, [field.get("description", ""), *dict.fromkeys(bounds)]))
