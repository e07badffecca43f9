"""glmctl promote."""

from __future__ import annotations

import click

from deploy.commands.options import Options, shared
from deploy.errors import Refused
from deploy.journal.journal import Journal
from service.contract.canary_file import CanaryFile


@click.command()
@shared
def promote(options: Options) -> None:
    """End the current canary step early.

    The rollout goes on with the next share, or with the cutover after the last one. A deploy with `--step pause` waits
    for this.

    \b
    Example:
      glmctl promote
    """  # noqa: D301  (\b keeps line breaks)
    options.tell_interrupted()
    options.require_change()
    with Journal(options.host).switching():
        canary = CanaryFile(options.host.runtime).promote()
    if canary is None:
        raise Refused("no canary is under way", hint="`glmctl deploy VERSION --canary 10,50` starts one")
    options.show({"promoted": canary.weight}, f"the canary step at {canary.weight:g} % has ended; the rollout goes on")
