"""glmctl rollback."""

from __future__ import annotations

from typing import get_args

import click

from deploy.commands.options import Context, Duration, shared
from deploy.errors import Refused
from deploy.journal.journal import Strategy
from deploy.reports import report
from deploy.rollout import preflight
from deploy.rollout import weights as inplace
from deploy.rollout.plan import Plan
from deploy.rollout.rollout import rollback as roll_back
from deploy.rollout.warmth import is_warm


@click.command()
@click.argument("version", required=False)
@click.option(
    "--strategy",
    type=click.Choice(get_args(Strategy)),
    help="As in deploy, for a cold rollback; else the way by which the present version came.",
)
@click.option("--drain", type=Duration(), default="120s", show_default=True, help="As in deploy, for a cold rollback.")
@shared
def rollback(context: Context, version: str | None, strategy: Strategy | None, drain: float) -> None:
    """Go back to the slot that served before, or to VERSION.

    While that slot is warm this is the cutover's rename backwards and takes milliseconds; a deploy that bakes, in
    another terminal too, ends with it. Both slots stay warm then, so that a second rollback takes the first one back.
    When it is cold it has to load first, like a deploy. What went live by its weights alone goes back by them: the
    model in the live slot is given those that it held before.
    """
    tools = context.tools
    idle = tools.slots.version(tools.slots.idle)
    if not is_warm(tools, tools.slots.idle, version or idle or ""):
        context.recover()
    before = inplace.way_back(tools)
    wanted = version or before or idle
    if tools.slots.live is None or wanted is None:
        raise Refused("there is nothing to go back to", hint="`glmctl status` shows both slots")
    if tools.slots.version(tools.slots.live) == wanted:
        raise Refused(f"{wanted} is live already")
    preflight.require_units(tools)
    strategy = strategy or ("weights" if wanted == before else "overlap")  # where no slot has it warm
    record = roll_back(tools, Plan(wanted, kind="rollback", strategy=strategy, bake=0.0, drain=drain))
    context.recover()  # a deploy that was killed while it baked ends here
    context.show(record, report.text(record))
