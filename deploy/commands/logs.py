"""glmctl logs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import click

from deploy.commands import access
from deploy.commands.options import Options, shared
from deploy.errors import Refused
from deploy.journal.journal import Journal
from deploy.reports.log import Selection, slots_of_processes
from deploy.systemd.sandbox import LOG_VARIABLE
from service.contract.slots import SLOTS

_POLL = 0.2  # seconds
_LAG = timedelta(seconds=5)  # its last line follows its end, and the journal has the time at which it got a line


@click.command()
@click.option("--slot", type=click.Choice(SLOTS), help="Of this slot alone.")
@click.option("--request", metavar="ID", help="Of one request: the X-Request-Id of its response.")
@click.option("--rollout", metavar="ID", help="From the begin of a rollout to its end; `glmctl history` lists them.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines, until Ctrl-C.")
@shared
def logs(options: Options, slot: str | None, request: str | None, rollout: str | None, *, follow: bool) -> None:
    """Show what the servers have logged.

    With --rollout also what glmctl has: who began it, each phase, and how it ended.

    It runs journalctl; in a sandbox it reads the sandbox's own log, in which --json has no effect.

    \b
    Examples:
      glmctl logs --slot green -f
      glmctl logs --request req-5d1c0c3e6f1b7a9e0000000000000007
    """  # noqa: D301  (\b keeps line breaks)
    access.require_read(options.host)
    since, until = _times(options, rollout)
    selection = Selection(slot, request, since, until, rollout)
    if text := os.environ.get(LOG_VARIABLE):
        for line in selection.select(_lines(Path(text), follow=follow), slots_of_processes(options.host.runtime)):
            click.echo(line, nl=False)
        return
    if not shutil.which("journalctl"):
        raise Refused("journalctl is not installed", hint="install systemd's journal, or read the log of the container")
    access.require_journal(options.host)
    argv = selection.journalctl(user=options.host.user, follow=follow, as_json=options.json)
    os.execvp(argv[0], argv)


def _times(options: Options, rollout: str | None) -> tuple[datetime | None, datetime | None]:
    if rollout is None:
        return None, None
    record = Journal(options.host).find(rollout)
    if record is None:
        raise Refused(f"there is no rollout {rollout}", hint="`glmctl history` lists them")
    return (
        datetime.fromisoformat(record.started_at),
        datetime.fromisoformat(record.ended_at) + _LAG if record.ended_at else None,
    )


def _lines(path: Path, *, follow: bool) -> Iterator[str]:
    with path.open(errors="replace") as file:
        line = ""
        while True:
            line += file.readline()
            if line.endswith("\n"):
                yield line
                line = ""
            elif follow:
                time.sleep(_POLL)
            else:
                return
