"""glmctl abort."""

from __future__ import annotations

import click

from deploy.commands.options import Options, shared
from deploy.journal.journal import Journal
from deploy.rollout.canary import abort as end_canary


@click.command()
@shared
def abort(options: Options) -> None:
    """End the canary and its rollout.

    The live slot answers all requests again at once, and the candidate is stopped. The rollout exits with 5. Refused
    with exit code 3 once the candidate is live: `glmctl rollback` goes back then.

    \b
    Example:
      glmctl abort
    """  # noqa: D301  (\b keeps line breaks)
    canary = end_canary(options.context)
    if Journal(options.host).interrupted():
        options.recover()  # nobody else ends the rollout
    options.show(
        {"aborted": canary.weight}, f"the canary at {canary.weight:g} % has ended; the live slot answers all requests"
    )
