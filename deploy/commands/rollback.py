"""glmctl rollback."""

from __future__ import annotations

from typing import get_args

import click

from deploy.commands.options import Duration, Options, shared
from deploy.errors import Refused
from deploy.journal.record import Strategy
from deploy.reports import report
from deploy.rollout import preflight, rollout, weights
from deploy.rollout.plan import Plan
from deploy.rollout.waiting import is_warm


@click.command()
@click.argument("version", required=False)
@click.option(
    "--strategy",
    type=click.Choice(get_args(Strategy)),
    help="As in deploy, if the version has to be loaded.  [default: weights if the live version was deployed with it, "
    "else overlap]",
)
@click.option(
    "--drain", type=Duration(), default="120s", show_default=True, help="As in deploy, if the version has to be loaded."
)
@shared
def rollback(options: Options, version: str | None, strategy: Strategy | None, drain: float) -> None:
    """Go back to the previous version, or to VERSION.

    While that version is still loaded in the other slot, `live` is renamed back within milliseconds. Both slots stay
    loaded then, so that a second rollback undoes the first. A deploy that is baking in another terminal ends with exit
    code 5. Otherwise the version is loaded first, as by a deploy without a bake.

    \b
    Examples:
      glmctl rollback
      glmctl rollback 1.0.0
    """  # noqa: D301  (\b keeps line breaks)
    context = options.context
    idle_version = context.slots.version(context.slots.idle)
    if not is_warm(context, context.slots.idle, version or idle_version or ""):
        options.recover()
    weights_before = weights.previous_version(context)
    wanted = version or weights_before or idle_version
    if context.slots.live is None or wanted is None:
        raise Refused("there is nothing to go back to", hint="`glmctl status` shows both slots")
    if context.slots.version(context.slots.live) == wanted:
        raise Refused(f"{wanted} is live already", hint="`glmctl release list` lists the versions")
    preflight.require_units(context)
    strategy = strategy or ("weights" if wanted == weights_before else "overlap")
    record = rollout.rollback(context, Plan(wanted, kind="rollback", strategy=strategy, bake=0.0, drain=drain))
    options.recover()  # ends a deploy whose controller was killed during the bake
    options.show(record, report.text(record))
