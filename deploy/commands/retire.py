"""glmctl retire."""

from __future__ import annotations

import click

from deploy.commands.options import Duration, Options, shared
from deploy.host import SLOTS
from deploy.rollout.retirement import retire as see_off


@click.command()
@click.argument("slot", type=click.Choice(SLOTS), required=False)
@click.option("--version", help="Only if the slot still serves this.")
@click.option("--drain", type=Duration(), default="120s", show_default=True, help="How long it may finish requests.")
@shared
def retire(options: Options, slot: str | None, version: str | None, drain: float) -> None:
    """Free the memory of the slot that is not live: it finishes what it began, and its unit is stopped.

    A slot that `deploy --keep-warm` or `rollback` left warm ends this way, by itself or by you.
    """
    options.recover()
    slot = slot or options.context.slots.idle
    done = see_off(options.context, slot, version, drain)
    options.show(
        {"retired": slot if done else None, "version": done},
        f"{slot} ({done}) is retired" if done else f"{slot} has nothing to retire",
    )
