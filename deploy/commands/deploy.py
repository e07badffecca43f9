"""glmctl deploy."""

from __future__ import annotations

from typing import get_args

import click

from deploy import inplace, preflight, report
from deploy.commands.options import Context, Duration, Shares, Step, shared
from deploy.errors import DrainCut, RolledBack
from deploy.journal import Journal, Strategy
from deploy.plan import Plan
from deploy.rollout import deploy as roll_out


@click.command()
@click.argument("version")
@click.option(
    "--strategy",
    type=click.Choice(get_args(Strategy)),
    default="overlap",
    show_default=True,
    help="overlap: beside the old version. swap: after it left, where two do not fit; clients wait meanwhile. weights: "
    "new weights into the running model, for a release of the same architecture.",
)
@click.option(
    "--canary",
    type=Shares(),
    default="",
    metavar="PERCENT,…",
    help="Shares of the requests that it answers before cutover: 10,50.",
)
@click.option(
    "--step", type=Step(), default="60s", show_default=True, help="How long each share holds; `pause`: until promote."
)
@click.option(
    "--sticky",
    is_flag=False,
    flag_value="authorization",
    metavar="[HEADER]",
    help="Requests with the same value of this header (Authorization) stay on one side for a step.",
)
@click.option("--bake", type=Duration(), default="60s", show_default=True, help="How long the old slot stays warm.")
@click.option("--drain", type=Duration(), default="120s", show_default=True, help="How long it may finish requests.")
@click.option(
    "--dry-run", is_flag=True, help="Check everything that can be checked, say what would be done, do nothing."
)
@shared
def deploy(
    context: Context,
    version: str,
    strategy: Strategy,
    canary: tuple[float, ...],
    step: float | None,
    sticky: str | None,
    bake: float,
    drain: float,
    dry_run: bool,
) -> None:
    """Move every client to VERSION, and lose nothing.

    preflight, prepare, start, verify, canary, cutover, bake, retire: the new version is loaded beside the old one, has
    to prove itself, answers a share of the requests if you say so, gets every client by one rename, and is watched
    while the old one stays warm. `glmctl promote` and `abort`, from another terminal, end a canary step; `glmctl
    rollback` goes back at once while it bakes. The receipt at the end accounts for every request.
    """
    context.recover()
    tools = context.tools
    live = tools.slots.live
    if live and tools.slots.version(live) == version and tools.systemd.state(tools.host.unit(live)).active == "active":
        context.show(
            {"outcome": "unchanged", "version": version, "live": live}, f"{version} is live already, in {live}"
        )
        return
    plan = Plan(version, strategy=strategy, bake=bake, drain=drain, canary=canary, step=step, sticky=sticky)
    if dry_run:
        preflight.rehearse(tools, plan)
        if strategy == "weights":
            inplace.require_possible(tools, plan)
            text = f"The weights of {version} could be put into the model in {live}. Nothing was touched."
            context.show({"outcome": "dry run", "version": version, "slot": live, "live": live}, text)
            return
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
