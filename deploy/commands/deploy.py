"""glmctl deploy."""

from __future__ import annotations

import click

from deploy import phases, report
from deploy.commands.options import Context, Duration, shared
from deploy.errors import DrainCut, RolledBack
from deploy.journal import Journal
from deploy.plan import Plan
from deploy.rollout import deploy as roll_out


@click.command()
@click.argument("version")
@click.option("--bake", type=Duration(), default="60s", show_default=True, help="How long the old slot stays warm.")
@click.option("--drain", type=Duration(), default="120s", show_default=True, help="How long it may finish requests.")
@click.option(
    "--dry-run", is_flag=True, help="Check everything that can be checked, say what would be done, do nothing."
)
@shared
def deploy(context: Context, version: str, bake: float, drain: float, dry_run: bool) -> None:
    """Move every client to VERSION, and lose nothing.

    preflight, prepare, start, verify, cutover, bake, retire: the new version is loaded beside the old one, has to prove
    itself, gets every client by one rename, and is watched while the old one stays warm. `glmctl rollback`, from
    another terminal too, goes back at once while it bakes. The receipt at the end accounts for every request.
    """
    context.recover()
    tools = context.tools
    live = tools.slots.live
    if live and tools.slots.version(live) == version and tools.systemd.state(tools.host.unit(live)).active == "active":
        context.show(
            {"outcome": "unchanged", "version": version, "live": live}, f"{version} is live already, in {live}"
        )
        return
    plan = Plan(version, bake=bake, drain=drain)
    if dry_run:
        phases.rehearse(tools, plan)
        old = f"; {tools.slots.version(live)} in {live} would stay warm for {bake:g} s" if live else ""
        context.show(
            {"outcome": "dry run", "version": version, "slot": tools.slots.idle, "live": live},
            f"{version} could be deployed to {tools.slots.idle}{old}. Nothing was touched.",
        )
        return
    try:
        record = roll_out(tools, plan)
    except (DrainCut, RolledBack):
        last = Journal(tools.host).last_of("deploy", version)
        if last and not context.json:
            context.display.close()
            report.show(last)
        raise
    context.show(record, report.text(record))
