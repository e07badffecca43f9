"""glmctl history."""

from __future__ import annotations

import click

from deploy.commands.options import Options, shared
from deploy.errors import Refused
from deploy.journal.journal import Journal
from deploy.reports import history as chronicle


@click.command()
@click.argument("identifier", metavar="[ID]", required=False)
@shared
def history(options: Options, identifier: str | None) -> None:
    """List past rollouts, or show one: its phases, how it was judged, and the account of its requests."""
    options.recover()
    records = Journal(options.host).records()
    if identifier is None:
        text = chronicle.listing(records) if records else "no rollout yet"
        options.show({"rollouts": [record.model_dump() for record in records]}, text)
        return
    found = [record for record in records if record.id == identifier]
    if not found:
        raise Refused(f"there is no rollout {identifier}", hint="`glmctl history` lists them")
    options.show(found[0], chronicle.text(found[0]))
