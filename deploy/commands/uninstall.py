"""glmctl uninstall."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack

import click

from deploy.commands.options import Options, shared
from deploy.errors import GlmError, Refused
from deploy.journal.journal import Journal
from deploy.systemd import removal


@click.command()
@click.option("--purge", is_flag=True, help="Delete releases, history, settings, keys and conversations, too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Print what would be stopped and deleted, and change nothing.")
@shared
def uninstall(options: Options, purge: bool, yes: bool, dry_run: bool) -> None:
    """Stop the service and remove what was installed.

    No client is served afterwards. A slot that is stopped finishes its requests first. Releases, history, settings and
    API keys are kept, and a later `glmctl install` finds them again; with --purge they are deleted. An operator's own
    drop-ins of the units, the Python environment, and the user and the groups stay in either case.

    \b
    Examples:
      glmctl uninstall --dry-run
      glmctl uninstall --yes --purge
    """  # noqa: D301  (\b keeps line breaks)
    host = options.host
    if not host.user and os.geteuid() != 0:
        raise Refused("uninstalling is root's", hint="run it as root, or with --user")
    plan = removal.of(host, purge=purge)
    document = {"units": list(plan.units), "removed": [str(path) for path in plan.paths], "dry_run": dry_run}
    if plan.is_empty:
        options.show(document, "nothing is installed")
        return
    words = [f"stop {unit}" for unit in plan.units] + [f"delete {path}" for path in plan.paths]
    if dry_run:
        options.show(document, "\n".join(words))
        return
    if not yes:
        if options.json or not sys.stdin.isatty():
            raise Refused("it would stop the service and ask first", hint="--yes does not ask; --dry-run only prints")
        click.echo("\n".join(words), err=True)
        if not click.confirm("No client is served afterwards. Go on?", err=True):
            raise GlmError("nothing was changed")
    with ExitStack() as stack:
        if host.state.exists():
            stack.enter_context(Journal(host).lock())
        plan.carry_out(options.display.progress)
    options.show(document, "\n".join(f"deleted {path}" for path in plan.paths))
