"""glmctl rollback."""

from __future__ import annotations

from typing import get_args

import click

from deploy.commands.options import Duration, Options, shared
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
def rollback(options: Options, version: str | None, strategy: Strategy | None, drain: float) -> None:
    """Go back to the slot that served before, or to VERSION.

    While that slot is warm this is the cutover's rename backwards and takes milliseconds; a deploy that bakes, in
    another terminal too, ends with it. Both slots stay warm then, so that a second rollback takes the first one back.
    When it is cold it has to load first, like a deploy. What went live by its weights alone goes back by them: the
    model in the live slot is given those that it held before.
    """
    context = options.context
    idle = context.slots.version(context.slots.idle)
    if not is_warm(context, context.slots.idle, version or idle or ""):
        options.recover()
    before = inplace.way_back(context)
    wanted = version or before or idle
    if context.slots.live is None or wanted is None:
        raise Refused("there is nothing to go back to", hint="`glmctl status` shows both slots")
    if context.slots.version(context.slots.live) == wanted:
        raise Refused(f"{wanted} is live already")
    preflight.require_units(context)
    strategy = strategy or ("weights" if wanted == before else "overlap")  # where no slot has it warm
    record = roll_back(context, Plan(wanted, kind="rollback", strategy=strategy, bake=0.0, drain=drain))
    options.recover()  # a deploy that was killed while it baked ends here
    options.show(record, report.text(record))
