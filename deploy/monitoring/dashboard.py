"""The Grafana dashboard, made of panels.py and annotations.py.

`python -m deploy.monitoring.dashboard` writes it to dashboard.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.monitoring.annotations import ANNOTATIONS, Annotation
from deploy.monitoring.panels import ROWS, Panel

__all__ = ["FILE", "document", "text"]

FILE = Path(__file__).with_name("dashboard.json")
_HOSTS = 'instance=~"$instance"'
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
_HEIGHTS = {"timeseries": 8, "state-timeline": 8, "stat": 4}


def text() -> str:
    """Return the content of dashboard.json."""
    return json.dumps(document(), indent=1) + "\n"


def document() -> dict[str, Any]:
    """Return the dashboard in Grafana's format."""
    return {
        "uid": "glm-handover",
        "title": "GLM model server",
        "tags": ["glm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": [_data_sources(), _instances()]},
        "annotations": {"list": [_annotation(one) for one in ANNOTATIONS]},
        "panels": list(_panels()),
    }


def _data_sources() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _instances() -> dict[str, Any]:
    query = 'label_values(up{job="glm"}, instance)'
    return {
        "name": "instance",
        "label": "host",
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "instances"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _annotation(one: Annotation) -> dict[str, Any]:
    return {
        "name": one.name,
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": one.colour,
        "expr": _with_hosts(one.expression),
        "titleFormat": one.title,
        "textFormat": one.text,
        "step": "10s",
    }


def _panels() -> Iterator[dict[str, Any]]:
    """Yield the panels of each row, left to right, after its title."""
    number, y = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"h": 1, "w": _COLUMNS, "x": 0, "y": y},
            "panels": [],
        }
        x, y, height = 0, y + 1, 0
        for panel in panels:
            number += 1
            if x + panel.width > _COLUMNS:
                x, y = 0, y + height
            height = _HEIGHTS[panel.kind]
            yield _panel(panel, number, {"h": height, "w": panel.width, "x": x, "y": y})
            x += panel.width
        y += height


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": _SOURCE,
            "expr": _with_hosts(query.expression),
            "legendFormat": query.legend,
        }
        for index, query in enumerate(panel.queries)
    ]
    found: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "gridPos": place,
        "datasource": _SOURCE,
        # by name: a version has one colour, whatever other versions a panel shows
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "color": {"mode": "palette-classic-by-name"}},
            "overrides": [],
        },
        "targets": targets,
    }
    if panel.kind == "stat":
        value_or_name = "value_and_name" if panel.unit != "short" else "name"
        found["options"] = {"textMode": value_or_name, "reduceOptions": {"calcs": ["lastNotNull"]}}
    else:
        found["options"] = {"legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"}}
    return found


def _with_hosts(expression: str) -> str:
    return expression.replace("$I", _HOSTS)


if __name__ == "__main__":
    FILE.write_text(text())
