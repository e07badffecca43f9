"""glmctl reload."""

from __future__ import annotations

import click

from deploy.commands.options import Options, shared
from deploy.reports import report
from deploy.rollout.plan import Plan
from deploy.rollout.reload import reload as hand_over


@click.command()
@click.argument("version", required=False)
@shared
def reload(options: Options, version: str | None) -> None:
    """Hand the live slot over in place: a new generation of it takes every connection, then the old one leaves.

    Without VERSION it serves what the slot points to, freshly loaded (new code, new settings). With VERSION the slot is
    pointed to that release first, and back again if the new generation does not become ready.
    """
    options.recover()
    context = options.context
    record = hand_over(context, Plan(version or "", kind="reload"))
    options.show(record, report.text(record))
