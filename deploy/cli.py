"""glmctl: the table of contents of its verbs, and the edge where errors are printed once."""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType

import click

from deploy.commands import (
    canary,
    demo,
    deploy,
    doctor,
    history,
    install,
    release,
    reload,
    retire,
    rollback,
    sandbox,
    status,
)
from deploy.commands.options import Options, shared
from deploy.errors import GlmError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="glm-handover", prog_name="glmctl")
@shared
def glmctl(options: Options) -> None:
    """Update a model server without anyone noticing.

    \b
    A first rollout:
      glmctl install --user                     our units, once
      glmctl release add ./my-checkpoint --version 1.0.0
      glmctl deploy 1.0.0                       starts it and goes live
      glmctl deploy 1.1.0                       every client moves over, none notices
      glmctl rollback                           and back, at once while the old one is warm

    \b
    Exit codes: 0 done; 1 unexpected; 2 usage; 3 refused by preflight, nothing was touched; 4 the candidate did
    not become ready, live untouched; 5 rolled back; 6 done, but the drain deadline cut requests; 7 another
    rollout holds the lock.
    """  # noqa: D301  (click reads \b as "keep these lines")


for verb in (
    release.release,
    deploy.deploy,
    canary.promote,
    canary.abort,
    rollback.rollback,
    reload.reload,
    retire.retire,
    status.status,
    history.history,
    doctor.doctor,
    install.install,
    demo.demo,
    sandbox.sandbox,
):
    glmctl.add_command(verb)


def main() -> None:
    """Run glmctl; every error leaves as one line with a hint, and a code that says what it means."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    options = Options()
    try:
        status = glmctl.main(standalone_mode=False, obj=options)
    except click.exceptions.Abort:
        status = _tell(options, "interrupted", None, 130)
    except KeyboardInterrupt:
        status = _tell(options, "interrupted", "the next glmctl call ends what was begun", 130)
    except click.ClickException as error:
        if "--json" in sys.argv:  # it may not have been read yet
            click.echo(_document(error.format_message(), "`--help` tells", error.exit_code))
        error.show()
        status = error.exit_code
    except GlmError as error:
        status = _tell(options, str(error), error.hint, error.exit_code)
    except BrokenPipeError:
        status = 1
    except OSError as error:
        status = _tell(
            options, f"{error.filename or 'the system'}: {error.strerror}", "`glmctl doctor` looks closer", 1
        )
    sys.exit(status if isinstance(status, int) else 0)


def _tell(options: Options, message: str, hint: str | None, code: int) -> int:
    options.display.close()
    if options.json:
        click.echo(_document(message, hint, code))
    click.echo(f"glmctl: {message}" + (f"\n        {hint}" if hint else ""), err=True)
    return code


def _document(message: str, hint: str | None, code: int) -> str:
    return json.dumps({"error": {"message": message, "hint": hint, "exit_code": code}})


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise KeyboardInterrupt
