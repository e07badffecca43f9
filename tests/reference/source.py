"""What a module says of itself: its docstring, and the classes with their documented fields."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Field", "Record", "classes", "docstring"]


@dataclass(frozen=True)
class Field:
    """A field of a class, its annotation and default as written, and the string below it."""

    name: str
    kind: str
    default: str
    text: str


@dataclass(frozen=True)
class Record:
    """A public class that has annotated fields."""

    name: str
    text: str
    fields: tuple[Field, ...]


def docstring(path: Path) -> str:
    """Return the docstring of a module."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def classes(path: Path) -> Iterator[Record]:
    """Yield the public classes of a module that have fields, in the order of the file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            fields = tuple(_fields(node))
            if fields:
                yield Record(node.name, ast.get_docstring(node) or "", fields)


def _fields(node: ast.ClassDef) -> Iterator[Field]:
    for number, part in enumerate(node.body):
        if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name):
            continue
        name = part.target.id
        if name.startswith("_") or name == "model_config":
            continue
        below = node.body[number + 1] if number + 1 < len(node.body) else None
        text = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            text = below.value.value
        yield Field(name, ast.unparse(part.annotation), ast.unparse(part.value) if part.value else "", text)
