"""glmctl doctor."""

from __future__ import annotations

from dataclasses import asdict

import click

from deploy.commands.options import Options, shared
from deploy.reports.doctor import examine


@click.command()
@shared
def doctor(options: Options) -> None:
    """Check this host, and print what is wrong and how to fix it.

    Checks the units, the public socket, the slot links, the live slot, the state files, the free disk space and the
    devices, in this order. Nothing is changed. Exit code 1 if anything is wrong. docs/runbook.md has a section for
    each `kind` of finding.

    \b
    Example:
      glmctl doctor
    """  # noqa: D301  (\b keeps line breaks)
    options.tell_interrupted()
    findings = examine(options.context)
    document = [asdict(finding) for finding in findings]
    lines = []
    for finding in findings:
        lines.append(f"{'ok  ' if finding.good else 'BAD '} {finding.what}")
        if finding.fix:
            lines.append(f"     {finding.fix}")
    options.show({"findings": document}, "\n".join(lines))
    if not all(finding.good for finding in findings):
        raise click.exceptions.Exit(1)
