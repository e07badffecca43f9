"""glmctl status."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click
from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live

from deploy.commands.options import Options, shared
from deploy.display import duration, size
from deploy.reports import devices, report
from deploy.reports.dashboard import Dashboard
from deploy.reports.overview import Overview, View
from deploy.reports.tables import fitting

_INTERVAL = 0.5  # seconds
_ALL_LINES = 1000  # printed without --watch: no phase is left out


@click.command()
@click.option("--watch", is_flag=True, help="Update twice a second until Ctrl-C.")
@shared
def status(options: Options, watch: bool) -> None:
    """Show both slots and the current or last rollout.

    For each slot: version, state, gate, share of the requests, requests in flight, p95 response time and memory. A gate
    is open while the slot accepts client connections. For each device: what the slots hold, what is free, and whether
    another copy of the live version fits. On a terminal the phases of the rollout are shown, too.

    Nothing is changed, also where a rollout was interrupted: see `glmctl resume`.

    With --watch and without a terminal, a line is printed whenever something changes; with --json, one document a line.

    \b
    Examples:
      glmctl status
      glmctl status --watch
    """  # noqa: D301  (\b keeps line breaks)
    options.tell_interrupted()
    overview = Overview(options.context)
    console = report.stdout()
    is_screen = console.is_terminal and not console.is_dumb_terminal
    if not watch:
        view = overview.collect()
        if options.json:
            options.show(view.document)
        else:
            once = ConsoleDimensions(console.width, _ALL_LINES)
            console.print(Dashboard().draw(view, once) if is_screen else _table(view.document, console.width))
        return
    options.display.close()
    with suppress(KeyboardInterrupt):
        if options.json:
            _print_changes(lambda: json.dumps(overview.collect().document))
        elif is_screen:
            _draw(console, overview.collect)
        else:
            _print_changes(lambda: _line(overview.collect().document))


def _draw(console: Console, collect: Callable[[], View]) -> None:
    """Draw views on the terminal's alternate screen until interrupted."""
    dashboard = Dashboard()
    with Live(dashboard.draw(collect(), console.size), console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(dashboard.draw(collect(), console.size), refresh=True)
            time.sleep(_INTERVAL)


def _print_changes(render: Callable[[], str]) -> None:
    """Print a line whenever it differs from the last one, until interrupted."""
    last = None
    while True:
        if (line := render()) != last:
            last = line
            click.echo(line)
        time.sleep(_INTERVAL)


def _table(document: dict[str, Any], width: int = report.WIDTH) -> RenderableType:
    rows = [
        {
            "slot": f"[bold green]{name} (live)" if name == document["live"] else name,
            "version": slot["version"] or "-",
            "state": slot["state"],
            "gate": slot["gate"],
            "share": f"{slot['share']:g} %" + (f" and {slot['mirror']:g} % mirrored" if slot["mirror"] else ""),
            "gen": str(slot["generation"] or "-"),
            "in flight": str(slot["in_flight"]),
            "clients": str(slot["connections"]),
            "workers": str(slot["workers"]),
            "memory": size(slot["memory"]),
            "p95": duration(slot["p95"]),
        }
        for name, slot in document["slots"].items()
    ]
    right = ("share", "gen", "in flight", "clients", "workers", "memory", "p95")
    table = fitting(rows, width, right=right, optional=("memory", "workers", "clients", "gen", "gate", "p95"))
    loads = [
        f"{name} was loaded in {duration(sum(slot['load'].values()))}: {report.load_parts(slot['load'])}"
        for name, slot in document["slots"].items()
        if slot["load"] and slot["state"] == "ready"
    ]
    gpus = [f"{name} has {report.workers(slot)}" for name, slot in document["slots"].items() if report.gpus(slot)]
    memory = [devices.text(device) for device in document["devices"]]
    listen = f"listening on {document['listen'] or 'nothing (run `glmctl install`)'}"
    return Group(table, "", *loads, *gpus, *memory, listen, *([document["summary"]] if document["summary"] else []))


def _line(document: dict[str, Any]) -> str:
    slots = "; ".join(
        f"{name} {slot['version'] or '-'} {slot['state']} gate {slot['gate']} {slot['share']:g} % "
        f"{slot['in_flight']} in flight"
        for name, slot in document["slots"].items()
    )
    rollout = document["rollout"]
    interrupted = " interrupted" if rollout and rollout["interrupted"] else ""
    under_way = f"; {rollout['kind']} of {rollout['version']}{interrupted} in {rollout['phase']}" if rollout else ""
    return f"live {document['live'] or '-'}; {slots}{under_way if rollout and not rollout['outcome'] else ''}"
