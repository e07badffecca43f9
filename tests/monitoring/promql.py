"""The names of the series that a PromQL expression reads, and the names of those that somebody writes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from prometheus_client import REGISTRY

from service import metrics  # noqa: F401 - registers its metrics

CODE = Path(__file__).resolve().parent.parent.parent
_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "group_left", "group_right", "on", "ignoring", "by"})
_LEFT_OUT = re.compile(
    r'"(?:[^"\\]|\\.)*"|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)|\[[^]]*\]', re.DOTALL
)
_NAME = re.compile(r"(?<![\w.:])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])")


def names(expression: str) -> set[str]:
    """Return the names of the series that an expression reads."""
    text = re.sub(r"{[^}]*}", "", _LEFT_OUT.sub("", expression))
    return set(_NAME.findall(text)) - _WORDS


def exported() -> set[str]:
    """Return the names of the service's series: of its registry, and of what it reads at a scrape, from its code."""
    found, families, read = set[str](), set[str](), set[str]()
    for family in REGISTRY.collect():
        families |= {family.name, f"{family.name}_total"}
        found |= {family.name + suffix for suffix in _SUFFIXES.get(family.type, ())}
    for path in (CODE / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and re.fullmatch("glm_[a-z_]+", str(node.value)):
                read.add(str(node.value))
    for name in read - families:
        found |= {name, f"{name}_total"}
    return {name for name in found if name.startswith("glm_")}


def others() -> set[str]:
    """Return the names of the series of other exporters that are used, from others.txt."""
    lines = Path(__file__).with_name("others.txt").read_text().splitlines()
    return {line.split()[0] for line in lines if line and not line.startswith("#")}
