"""glmctl status."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from deploy import report
from deploy.accounts import current
from deploy.canary import Share
from deploy.commands.options import Context, shared
from deploy.host import SLOTS
from deploy.journal import Journal
from deploy.plan import Tools

_EVERY = 0.5


@click.command()
@click.option("--watch", is_flag=True, help="Keep showing it until Ctrl-C; a line per change without a terminal.")
@shared
def status(context: Context, watch: bool) -> None:
    """Show slots, versions, gates, requests in flight, memory and the last rollout."""
    context.recover()
    if not watch:
        document = _document(context.tools)
        if context.json:
            context.show(document)
        else:
            report.stdout().print(_render(document))
        return
    _watch(context)


def _watch(context: Context) -> None:
    console = report.stdout()
    try:
        if not console.is_terminal or context.json:
            shown = None
            while True:
                document = _document(context.tools)
                line = str(document) if context.json else _line(document)
                if line != shown:
                    shown = line
                    context.show(document) if context.json else click.echo(line)
                time.sleep(_EVERY)
        with Live(_render(_document(context.tools)), console=console, auto_refresh=False) as live:
            while True:
                live.update(_render(_document(context.tools)), refresh=True)
                time.sleep(_EVERY)
    except KeyboardInterrupt:
        return


def _document(tools: Tools) -> dict[str, Any]:
    live = tools.slots.live
    last = Journal(tools.host).last()
    rollout = last.model_dump(exclude={"receipt"}) | {"phase": last.phase} if last else None
    return {
        "live": live,
        "listen": tools.systemd.listen(),
        "slots": {slot: _slot(tools, slot) for slot in SLOTS},
        "rollout": rollout,
        "summary": report.summary(last) if last else None,
    }


def _slot(tools: Tools, slot: str) -> dict[str, Any]:
    one = current(tools.host, slot)
    unit = tools.systemd.state(tools.host.unit(slot))
    version = tools.slots.version(slot)
    return {
        "version": one.version if one and one.ready else version,
        "state": _state(version, unit.active, serves=bool(one and one.serves)),
        "gate": one.gate if one else "closed",
        "generation": one.generation if one else None,
        "share": _share(tools, slot),
        "mirror": _mirror(tools, slot),
        "in_flight": one.in_flight if one else 0,
        "connections": one.connections if one else 0,
        "workers": len(one.living) if one else 0,
        "memory": sum(worker.memory for worker in one.living) if one else 0,
        "says": unit.status or None,
    }


def _share(tools: Tools, slot: str) -> float:
    """What share of the requests it answers, in percent."""
    canary, live = Share(tools.host), tools.slots.live
    given = canary.weight if canary.slot not in {None, live} else None
    if slot == live:
        return 100 - (given or 0.0)
    return given or 0.0


def _mirror(tools: Tools, slot: str) -> float:
    """What share of the live slot's requests it is asked too, in percent."""
    canary = Share(tools.host)
    return canary.mirror if canary.slot == slot != tools.slots.live else 0.0


def _state(version: str | None, active: str, *, serves: bool) -> str:
    if active in {"active", "reloading"}:
        return "ready" if serves else "starting"
    if version is None:
        return "empty"
    return {"activating": "starting", "deactivating": "stopping", "failed": "failed"}.get(active, "stopped")


def _render(document: dict[str, Any]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("slot", "version", "state", "gate"):
        table.add_column(title, no_wrap=True)
    for title in ("share", "gen", "in flight", "clients", "workers", "memory"):
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
        )
    foot = f"listening on {document['listen'] or 'nothing: `glmctl install`'}"
    return Group(table, "", foot, *([document["summary"]] if document["summary"] else []))


def _line(document: dict[str, Any]) -> str:
    slots = "; ".join(
        f"{name} {slot['version'] or '-'} {slot['state']} gate {slot['gate']} {slot['share']:g} % "
        f"{slot['in_flight']} in flight"
        for name, slot in document["slots"].items()
    )
    return f"live {document['live'] or '-'}; {slots}"
