"""What do the measurements of `make bench` look like?

Draws a picture for each benchmark that a file of --json has, with matplotlib (the extra `bench`), as SVG.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.output import read

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]

__all__ = ["PLOTS", "draw", "latest"]

DIRECTORY = Path("docs/images/bench")
BLUE, GREY = "#1f6feb", "#8b949e"


def latest(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the last run of each benchmark, by its name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for document in read(path):
        if document["kind"] == "run":
            found[document["benchmark"]] = []
        elif document["kind"] != "skipped":
            found.setdefault(document["benchmark"], []).append(document)
    return {name: rows for name, rows in found.items() if rows}


def _plain(axis: Axis) -> None:
    """Write the numbers of an axis as the tables do: 10,000."""
    axis.set_major_formatter("{x:,.0f}")


def switching(rows: Rows, figure: Figure) -> None:
    """Lost requests, longest pause and time until all are over, for each peer."""
    names = [row["peer"] for row in rows]
    over = [(row["all_over_ms"] or {}).get("max") for row in rows]
    columns = (
        ("lost requests", [row["lost"] for row in rows]),
        ("longest pause, ms", [row["longest_pause_ms"] for row in rows]),
        ("all kept connections over, ms (max)", over),
    )
    for axes, (title, values) in zip(figure.subplots(1, 3, sharey=True), columns, strict=True):
        colours = [BLUE if name == "this service" else GREY for name in names]
        bars = axes.barh(names, [value or 0 for value in values], color=colours)
        labels = [f"{value:,.0f}" if value is not None else "never" for value in values]
        axes.bar_label(bars, labels=labels, fontsize=8, padding=4)
        axes.set_title(title, fontsize=9)
        axes.margins(x=0.3)
        axes.locator_params(axis="x", nbins=3, integer=True)
        _plain(axes.xaxis)
    figure.axes[0].invert_yaxis()


def steady(rows: Rows, figure: Figure) -> None:
    """Requests a second as ratios to plain Uvicorn."""
    kinds = list(dict.fromkeys(row["request"] for row in rows))
    for axes, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
        some = [row for row in rows if row["request"] == kind]
        axes.axvline(1, color=GREY, linewidth=1, zorder=0)
        bars = axes.barh([row["system"] for row in some], [row["rate_ratio"] for row in some], color=BLUE)
        axes.bar_label(
            bars, fmt="%.2f", fontsize=8, padding=4, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0}
        )
        axes.set_title(f"{kind}: requests/s, as a ratio", fontsize=9)
        axes.margins(x=0.25)
        axes.locator_params(axis="x", nbins=4)
    figure.axes[0].invert_yaxis()


def growth(rows: Rows, figure: Figure) -> None:
    """Time until all connections are over, by their number."""
    axes = figure.subplots()
    if all(row["all_over_ms"] is None for row in rows):
        axes.text(0.5, 0.5, "no switch was over within the limit", ha="center")
        return
    for workers in dict.fromkeys(row["workers"] for row in rows):
        some = [row for row in rows if row["workers"] == workers and row["all_over_ms"] is not None]
        label = f"{workers} worker{'s' if workers > 1 else ''}"
        axes.plot([row["connections"] for row in some], [row["all_over_ms"] for row in some], marker="o", label=label)
    axes.axhline(250, color=GREY, linewidth=1, linestyle="--", label="target at 10,000: 250 ms")
    axes.set(xscale="log", yscale="log", xlabel="idle connections", ylabel="over, ms")
    for axis in (axes.xaxis, axes.yaxis):
        _plain(axis)
        axis.set_minor_formatter("")
    axes.set_ylim(min(10, axes.get_ylim()[0]), max(1000, axes.get_ylim()[1]))
    axes.set_title("until the new slot has all connections", fontsize=9)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)


def rollout(rows: Rows, figure: Figure) -> None:
    """The bare load and what comes on top, for each rollout."""
    axes = figure.subplots()
    some = [row for row in rows if row["ours"] is not None]
    names = [f"rollout {number}" for number, _ in enumerate(some, 1)]
    bare = [row["bare_load"] for row in some]
    axes.barh(names, bare, color=GREY, label="bare load")
    ours = [max(0.0, row["ours"]) for row in some]
    axes.barh(names, ours, left=bare, color=BLUE, label="ours: preflight, digests,\nGunicorn, checks, switch")
    axes.set_xlabel("seconds from the command to the last answer of the old version")
    axes.invert_yaxis()
    figure.legend(loc="outside right center", fontsize=8, frameon=False)


PLOTS: dict[str, Callable[[Rows, Figure], None]] = {
    "switching": switching,
    "steady": steady,
    "growth": growth,
    "rollout": rollout,
}


def draw(found: dict[str, list[dict[str, Any]]], directory: Path) -> list[Path]:
    """Draw what has a picture, and return the files; raises ImportError without matplotlib."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # the same figures give the same bytes, and text stays text
    settings: dict[Any, Any] = {
        "svg.hashsalt": "bench",
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, rows in found.items():
        if name in PLOTS:
            with mpl.rc_context(settings):
                figure = Figure(figsize=(9, 3.2), layout="constrained")
                PLOTS[name](rows, figure)
                if any(row["quick"] for row in rows):
                    figure.suptitle("--quick: a check of the benchmark, no figures", fontsize=9, color="#b62324")
                path = directory / f"{name}.svg"
                figure.savefig(path, metadata={"Date": None})
            written.append(path)
    return written


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, and print the names of the files."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.plots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="written by --json")
    parser.add_argument("--out", type=Path, default=DIRECTORY, help="directory of the pictures [%(default)s]")
    options = parser.parse_args(argv)
    try:
        found = latest(options.file)
    except OSError as error:
        parser.error(f"{options.file} cannot be read: {error.strerror}; `make bench` writes one")
    if not found:
        parser.error(f"{options.file} has no measurements; `make bench` writes them")
    try:
        for path in draw(found, options.out):
            print(path)
    except ImportError:
        sys.exit("matplotlib is not installed: pip install --editable '.[bench]'")


if __name__ == "__main__":
    main()
