"""The plots of the last ten minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ui.rollout_texts import RolloutTexts
from ui.status import Point

__all__ = ["Plot", "plots", "series"]

Plot = tuple[str, dict[str, Any]]
"""The title, and the Vega-Lite specification without its data."""

_COLOURS = {"blue": ("#3b8fd9", "#9cc9f2", "#1c5c94"), "green": ("#3aa76d", "#96d9b5", "#1f6e45")}
_TICKS = {"interval": "minutes", "step": 2}
_UNITS = {"p95": "s", "ttft_p95": "s", "errors": "%", "share": "%"}


def series(points: Sequence[Point]) -> dict[str, list[Any]]:
    """Return the points as columns; `series` is the version with its slot."""
    return {
        "at": [datetime.fromtimestamp(point.at, UTC) for point in points],
        "series": [_series(point) for point in points],
        "share": [point.share for point in points],
        "requests_per_s": [point.requests_per_s for point in points],
        "p95": [point.p95 for point in points],
        "ttft_p95": [point.ttft_p95 for point in points],
        "errors": [None if point.errors is None else 100 * point.errors for point in points],
    }


def plots(points: Sequence[Point], texts: RolloutTexts) -> list[Plot]:
    """Return the plots; each version has the same colour in all of them, a hue of its slot."""
    colours = _colours(points)
    titles = {"requests_per_s": texts.requests, "p95": texts.p95, "ttft_p95": texts.ttft, "errors": texts.errors}
    most = max([1.0, *(100 * point.errors for point in points if point.errors)])  # percent
    band = _specification("share", texts.share, colours, {"type": "area", "opacity": 0.7}, 100)
    lines = [
        _specification(name, title, colours, {"type": "line", "strokeWidth": 2}, most if name == "errors" else None)
        for name, title in titles.items()
    ]
    return [band, *lines]


def _specification(name: str, title: str, colours: Mapping[str, str], mark: dict[str, Any], most: float | None) -> Plot:
    unit = f" ({_UNITS[name]})" if name in _UNITS else ""
    y: dict[str, Any] = {"field": name, "type": "quantitative", "title": None, "axis": {"tickCount": 3}}
    y["scale"] = {"zero": True} if most is None else {"domain": [0, most]}
    colour = {
        "field": "series",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(colours), "range": list(colours.values())},
        "legend": {"orient": "top", "offset": 4, "padding": 0},
    }
    x = {"field": "at", "type": "temporal", "title": None, "axis": {"format": "%H:%M", "tickCount": _TICKS}}
    specification = {
        "mark": {**mark, "interpolate": "step-after", "tooltip": True},
        "encoding": {"x": x, "y": y, "color": colour},
    }
    return f"{title}{unit}", specification


def _colours(points: Sequence[Point]) -> dict[str, str]:
    found: dict[str, str] = {}
    used = dict.fromkeys(_COLOURS, 0)
    for point in reversed(points):  # the newest version of a slot has its plain colour
        name = _series(point)
        if name not in found:
            of_slot = _COLOURS[point.slot]
            found[name] = of_slot[used[point.slot] % len(of_slot)]
            used[point.slot] += 1
    return dict(sorted(found.items()))


def _series(point: Point) -> str:
    return f"{point.version} ({point.slot})"
