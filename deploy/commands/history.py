"""glmctl history."""

from __future__ import annotations

import click

from deploy import report
from deploy.commands.options import Context, shared
from deploy.errors import Refused
from deploy.journal import Journal


@click.command()
@click.argument("identifier", metavar="[ID]", required=False)
@shared
def history(context: Context, identifier: str | None) -> None:
    """List past rollouts, or show one with its phases and its receipt."""
    context.recover()
    records = Journal(context.host).records()
    if identifier is None:
        lines = [f"{record.id}  {report.summary(record)}" for record in records]
        context.show({"rollouts": [record.model_dump() for record in records]}, "\n".join(lines) or "no rollout yet")
        return
    found = [record for record in records if record.id == identifier]
    if not found:
        raise Refused(f"there is no rollout {identifier}", hint="`glmctl history` lists them")
    steps = "\n".join(f"  {step.at}  {step.phase}" for step in found[0].steps)
    context.show(found[0], f"{report.text(found[0])}\n{steps}")
