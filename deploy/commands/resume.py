"""glmctl resume."""

from __future__ import annotations

import signal

import click

from deploy.commands.options import Options, shared
from deploy.errors import Locked
from deploy.journal.journal import Journal
from deploy.rollout.recovery import resume as go_on
from deploy.systemd import programs


@click.command()
@click.option("--guard", "identifier", hidden=True, help="Called by the timer of that rollout.")
@click.option("--arm", is_flag=True, hidden=True, help="Start the timers of interrupted rollouts: called at boot.")
@shared
def resume(options: Options, identifier: str | None, arm: bool) -> None:
    """Go on with a rollout whose controller died, or end it.

    An interrupted bake is watched to its planned end: then the old version is retired, or, if the new one is worse, it
    is rolled back, with exit code 5. In any other phase the rollout is ended: before the cutover the candidate is
    stopped, after it the old version is retired.

    A timer does the same 15 s after the controller died, or after the next boot. Exit code 7 while a rollout runs.

    \b
    Example:
      glmctl resume
    """  # noqa: D301  (\b keeps line breaks)
    options.close_files()
    if arm:
        for record in Journal(options.host).interrupted():
            options.context.timers.start_guard(record.id)
        return
    if identifier is not None:
        _guard(options, identifier)
        return
    programs.require()
    options.require_change()
    ended = go_on(options.context)
    document = {"resumed": [one.record.model_dump() for one in ended]}
    options.show(document, "\n".join(one.text for one in ended) or "no rollout was interrupted")
    for one in ended:
        if one.error:
            raise one.error


def _guard(options: Options, identifier: str) -> None:
    """Resume what was interrupted, unless a rollout is running; stop the timer once its rollout has ended.

    SIGTERM, as at shutdown, leaves the rollout as it is: to undo it takes longer than there is time.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    record = Journal(options.host).find(identifier)
    if record is None or record.outcome is not None:
        options.context.timers.stop_guard(identifier)
        return
    if not Journal(options.host).interrupted():
        return
    try:
        ended = go_on(options.context)
    except Locked:
        return
    for one in ended:
        options.note(one.text)
