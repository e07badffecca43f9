"""glmctl reload."""

from __future__ import annotations

import click

from deploy.commands.options import Options, shared
from deploy.reports import report
from deploy.rollout.plan import Plan
from deploy.rollout.reload import reload as reload_slot


@click.command()
@click.argument("version", required=False)
@shared
def reload(options: Options, version: str | None) -> None:
    """Replace the processes of the live slot by new ones, in place.

    A new generation is started beside the running one in the same slot. When it is ready, it takes over every client
    connection, and the old one finishes its requests and ends.

    Without VERSION the release stays the same: for new code or new settings. With VERSION the slot is pointed to that
    release first, and back again if the new generation does not become ready.

    \b
    Examples:
      glmctl reload
      glmctl reload 1.1.0
    """  # noqa: D301  (\b keeps line breaks)
    options.recover()
    record = reload_slot(options.context, Plan(version or "", kind="reload"))
    options.show(record, report.text(record))
