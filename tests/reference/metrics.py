"""The reference of the metrics: every metric that service/metrics.py and service/host_metrics create."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from service import host_metrics
from tests.reference.markdown import GENERATED, table

__all__ = ["page"]

_SERVICE = Path(str(host_metrics.__file__)).parent.parent


def page() -> str:
    """Return the page."""
    parts = {
        "Of the workers": [_SERVICE / "metrics.py"],
        "Of the host": sorted((_SERVICE / "host_metrics").glob("*.py")),
    }
    text = (
        f"{GENERATED}\n# Metrics\n\n`GET /metrics`, in Prometheus' text format. One scrape has the counts of all "
        "workers of "
        "all generations of the host, ended ones too. [monitoring](../how-to/monitoring.md) has scrape configuration, "
        "alerts and a dashboard.\n"
    )
    for title, paths in parts.items():
        rows = sorted(row for path in paths for row in _metrics(path))
        text += f"\n## {title}\n\n{table(('metric', 'type', 'labels', 'meaning'), rows)}"
    return text


def _metrics(path: Path) -> Iterator[tuple[str, str, str, str]]:
    tree = ast.parse(path.read_text())
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) >= 2 and (name := _name(node.args[0])):
            kind = ast.unparse(node.func).removeprefix("_Summed").removesuffix("MetricFamily").lower()
            if kind not in {"counter", "gauge", "histogram"}:
                continue
            labels = (
                node.args[2]
                if len(node.args) > 2
                else next((k.value for k in node.keywords if k.arg == "labels"), None)
            )
            full = name if kind != "counter" or name.endswith("_total") else f"{name}_total"
            yield f"`{full}`", kind, ", ".join(_labels(labels, constants)), ast.literal_eval(node.args[1])
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if (name := _name(key)) and isinstance(value, ast.Constant):
                    yield f"`{name}`", "gauge", "`device`", str(value.value)


def _name(node: ast.AST | None) -> str:
    is_name = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("glm_")
    return str(node.value) if is_name and isinstance(node, ast.Constant) else ""


def _labels(node: ast.AST | None, constants: dict[str, ast.expr]) -> Iterator[str]:
    match node:
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            for part in parts:
                yield from _labels(part, constants)
        case ast.Starred(value=value):
            yield from _labels(value, constants)
        case ast.Name(id=name) if name in constants:
            yield from _labels(constants[name], constants)
        case ast.Constant(value=str(text)):
            yield f"`{text}`"
        case ast.Call():
            yield "one of each library"
