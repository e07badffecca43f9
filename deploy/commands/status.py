"""glmctl status."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import click
from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.table import Table

from deploy.commands.options import Options, shared
from deploy.display import Display
from deploy.reports import report
from deploy.reports.dashboard import Dashboard
from deploy.reports.overview import Overview, View

_EVERY = 0.5
_AS_LONG_AS_IT_GETS = 1000  # lines


@click.command()
@click.option("--watch", is_flag=True, help="Keep showing it until Ctrl-C; a line per change without a terminal.")
@shared
def status(options: Options, watch: bool) -> None:
    """Show slots, versions, gates, requests in flight, memory and the last rollout."""
    options.recover()
    overview = Overview(options.context)
    console = report.stdout()
    is_screen = console.is_terminal and not console.is_dumb_terminal
    if not watch:
        view = overview.look()
        if options.json:
            options.show(view.document)
        else:
            once = ConsoleDimensions(console.width, _AS_LONG_AS_IT_GETS)
            console.print(Dashboard().draw(view, once) if is_screen else _table(view.document))
        return
    options.display.close()
    look = partial(_look, options, overview)
    with suppress(KeyboardInterrupt):
        if options.json:
            _tell(lambda: json.dumps(look().document))
        elif is_screen:
            options.display = Display(quiet=True)  # the picture shows it
            _draw(console, look)
        else:
            _tell(lambda: _line(look().document))


def _look(options: Options, overview: Overview) -> View:
    """Look; a rollout whose controller died while we watched is ended, as any other call would end it."""
    view = overview.look()
    under_way = view.record is not None and view.record.outcome is None
    return overview.look() if under_way and options.recover() else view


def _draw(console: Console, look: Callable[[], View]) -> None:
    """A picture on a screen of its own, which is gone when it ends."""
    dashboard = Dashboard()
    with Live(dashboard.draw(look(), console.size), console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(dashboard.draw(look(), console.size), refresh=True)
            time.sleep(_EVERY)


def _tell(look: Callable[[], str]) -> None:
    """A line whenever there is something new."""
    shown = None
    while True:
        if (line := look()) != shown:
            shown = line
            click.echo(line)
        time.sleep(_EVERY)


def _table(document: dict[str, Any]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("slot", "version", "state", "gate"):
        table.add_column(title, no_wrap=True)
    for title in ("share", "gen", "in flight", "clients", "workers", "memory", "p95"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, slot in document["slots"].items():
        mark = "[bold green]" if name == document["live"] else ""
        table.add_row(
            f"{mark}{name}{' (live)' if mark else ''}",
            slot["version"] or "-",
            slot["state"],
            slot["gate"],
            f"{slot['share']:g} %" + (f" and {slot['mirror']:g} % mirrored" if slot["mirror"] else ""),
            str(slot["generation"] or "-"),
            str(slot["in_flight"]),
            str(slot["connections"]),
            str(slot["workers"]),
            f"{slot['memory'] / (1 << 20):.0f} MiB",
            report.span(slot["p95"]),
        )
    foot = f"listening on {document['listen'] or 'nothing: `glmctl install`'}"
    return Group(table, "", foot, *([document["summary"]] if document["summary"] else []))


def _line(document: dict[str, Any]) -> str:
    slots = "; ".join(
        f"{name} {slot['version'] or '-'} {slot['state']} gate {slot['gate']} {slot['share']:g} % "
        f"{slot['in_flight']} in flight"
        for name, slot in document["slots"].items()
    )
    rollout = document["rollout"]
    under_way = f"; {rollout['kind']} of {rollout['version']} in {rollout['phase']}" if rollout else ""
    return f"live {document['live'] or '-'}; {slots}{under_way if rollout and not rollout['outcome'] else ''}"
