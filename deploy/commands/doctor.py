"""glmctl doctor."""

from __future__ import annotations

import click

from deploy.commands.options import Options, shared
from deploy.reports.doctor import examine


@click.command()
@shared
def doctor(options: Options) -> None:
    """Say what is wrong with this host and how to fix it; exit code 1 if anything is."""
    options.recover()
    findings = examine(options.context)
    lines = [
        f"{'ok  ' if one.good else 'BAD '} {one.what}" + (f"\n     {one.fix}" if one.fix else "") for one in findings
    ]
    options.show(
        {"findings": [{"good": one.good, "what": one.what, "fix": one.fix} for one in findings]}, "\n".join(lines)
    )
    if not all(one.good for one in findings):
        raise click.exceptions.Exit(1)
