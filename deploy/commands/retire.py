"""glmctl retire."""

from __future__ import annotations

import click

from deploy.commands.options import Duration, Options, shared
from deploy.rollout.retire import retire_idle_slot
from service.contract.slots import SLOTS


@click.command()
@click.argument("slot", type=click.Choice(SLOTS), required=False)
@click.option("--version", help="Do nothing unless the slot serves this version.")
@click.option(
    "--drain",
    type=Duration(),
    default="120s",
    show_default=True,
    help="How long its requests may take to finish; what still runs then is cut.",
)
@shared
def retire(options: Options, slot: str | None, version: str | None, drain: float) -> None:
    """Stop the slot that is not live and free its memory.

    The slot finishes its requests, then its unit is stopped. Slots that `deploy --keep-warm` or `rollback` left running
    are retired this way. The live slot is refused.

    \b
    Examples:
      glmctl retire
      glmctl retire blue --drain 10m
    """  # noqa: D301  (\b keeps line breaks)
    options.recover()
    slot = slot or options.context.slots.idle
    retired = retire_idle_slot(options.context, slot, version, drain)
    options.show(
        {"retired": slot if retired else None, "version": retired},
        f"{slot} ({retired}) was stopped" if retired else f"nothing to retire in {slot}",
    )
