"""glmctl history."""

from __future__ import annotations

import click

from deploy.commands.options import Options, shared
from deploy.errors import Refused
from deploy.journal.journal import Journal
from deploy.reports.history import details, listing


@click.command()
@click.argument("identifier", metavar="[ID]", required=False)
@shared
def history(options: Options, identifier: str | None) -> None:
    """List past rollouts, or show one in full.

    Without ID: one line for each rollout, newest last. With ID: its phases and their times, the metrics by which the
    candidate was judged, the hooks that ran, and the receipt, which accounts for every request.

    \b
    Examples:
      glmctl history
      glmctl history 20261123-083203-01
    """  # noqa: D301  (\b keeps line breaks)
    options.tell_interrupted()
    records = Journal(options.host).records()
    if identifier is None:
        text = listing(records) if records else "no rollout yet"
        options.show({"rollouts": [record.model_dump() for record in records]}, text)
        return
    record = next((record for record in records if record.id == identifier), None)
    if record is None:
        raise Refused(f"there is no rollout {identifier}", hint="`glmctl history` lists them")
    options.show(record, details(record))
