"""glmctl reload."""

from __future__ import annotations

import click

from deploy.commands.options import Context, shared
from deploy.reports import report
from deploy.rollout.plan import Plan
from deploy.rollout.reload import reload as hand_over


@click.command()
@click.argument("version", required=False)
@shared
def reload(context: Context, version: str | None) -> None:
    """Hand the live slot over in place: a new generation of it takes every connection, then the old one leaves.

    Without VERSION it serves what the slot points to, freshly loaded (new code, new settings). With VERSION the slot is
    pointed to that release first, and back again if the new generation does not become ready.
    """
    context.recover()
    tools = context.tools
    record = hand_over(tools, Plan(version or "", kind="reload"))
    context.show(record, report.text(record))
