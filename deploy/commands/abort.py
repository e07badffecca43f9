"""glmctl abort."""

from __future__ import annotations

import click

from deploy.commands.options import Options, shared
from deploy.errors import Refused
from deploy.journal.journal import Journal
from service.contract.canary_file import CanaryFile


@click.command()
@shared
def abort(options: Options) -> None:
    """End the canary and its rollout.

    The live slot answers all requests again at once, and the candidate is stopped. The rollout exits with 5.

    \b
    Example:
      glmctl abort
    """  # noqa: D301  (\b keeps line breaks)
    options.recover()
    with Journal(options.host).switching():  # not during the rename of `live`: after it there is no canary to end
        canary = CanaryFile(options.host.runtime).remove()
    if canary is None:
        raise Refused("no canary is under way", hint="`glmctl deploy VERSION --canary 10,50` starts one")
    options.show(
        {"aborted": canary.weight}, f"the canary at {canary.weight:g} % has ended; the live slot answers all requests"
    )
