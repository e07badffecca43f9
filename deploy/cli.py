"""The entry point of glmctl: the list of its verbs, and the one place where errors are printed."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import NoReturn

import click

from deploy import __version__, interrupts
from deploy.commands import (
    abort,
    completion,
    demo,
    deploy,
    doctor,
    env,
    history,
    install,
    listen,
    logs,
    operate,
    promote,
    release,
    reload,
    resume,
    retire,
    rollback,
    sandbox,
    status,
    trace,
    uninstall,
)
from deploy.commands.options import Options, shared
from deploy.errors import GlmError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="glmctl")
@shared
def glmctl(options: Options) -> None:
    """Move every client of a model server to a new version, without losing a request.

    \b
    A first rollout:
      glmctl install --user                      install the units, once
      systemctl --user enable --now glm.target   listen on 127.0.0.1:8000
      glmctl release add ./my-checkpoint --version 1.0.0
      glmctl deploy 1.0.0                        load it and make it live
      glmctl deploy 1.1.0                        move every client to 1.1.0
      glmctl rollback                            move every client back

    \b
    Exit codes:
      0  done
      1  unexpected error
      2  usage error
      3  refused by preflight; nothing was changed
      4  the candidate did not become ready; the live slot was not touched
      5  rolled back
      6  done, but the drain deadline cut requests
      7  another rollout holds the lock
    """  # noqa: D301  (\b keeps line breaks)


for verb in (
    release.release,
    env.env,
    deploy.deploy,
    promote.promote,
    abort.abort,
    rollback.rollback,
    resume.resume,
    reload.reload,
    retire.retire,
    status.status,
    history.history,
    logs.logs,
    trace.trace,
    doctor.doctor,
    install.install,
    listen.listen,
    uninstall.uninstall,
    demo.demo,
    sandbox.sandbox,
    completion.completion,
    operate.operate,
):
    glmctl.add_command(verb)


@click.group(context_settings=glmctl.context_settings)
@shared
def glmctl_operator(options: Options) -> None:
    """Deploy on this host as a member of glm-operators.

    These are the verbs of glmctl that need no more trust than a rollout. `release add` is not among them: it reads any
    file that root can read, and what it adds is what clients are answered with.

    \b
    Examples:
      sudo glmctl-operator deploy 1.1.0
      sudo glmctl-operator rollback
    """  # noqa: D301  (\b keeps line breaks)


for name in (
    "deploy",
    "promote",
    "abort",
    "rollback",
    "resume",
    "reload",
    "retire",
    "status",
    "history",
    "logs",
    "trace",
    "doctor",
):
    glmctl_operator.add_command(glmctl.commands[name])
glmctl_operator.add_command(
    click.Group(
        "release",
        help="List, verify and delete releases.",
        commands={name: release.release.commands[name] for name in ("list", "verify", "remove", "prune")},
    )
)


def main() -> None:
    """Run glmctl. Every error is printed as one line with a hint, and has its exit code."""
    _run(glmctl, Options())


def operator_main() -> None:
    """Run glmctl for a member of glm-operators, as sudo does: without a pager, from which root's shell can be had."""
    os.environ["SYSTEMD_PAGER"] = ""
    _run(glmctl_operator, Options(is_operator=True))


def _run(group: click.Group, options: Options) -> NoReturn:
    interrupts.handle()
    try:
        status = group.main(standalone_mode=False, obj=options)
    except click.ClickException as error:
        if "--json" in sys.argv:  # a usage error may come before the option was parsed
            click.echo(_document(error.format_message(), "see `glmctl --help`", error.exit_code))
        error.show()
        status = error.exit_code
    except BrokenPipeError:
        status = 1
    except (Exception, KeyboardInterrupt) as error:
        if options.debug:
            traceback.print_exc()
        status = _fail(options, *_explain(error))
    sys.exit(status if isinstance(status, int) else 0)


def _explain(error: BaseException) -> tuple[str, str | None, int]:
    """Return message, hint and exit code of an error."""
    match error:
        case GlmError():
            return str(error), error.hint, error.exit_code
        case KeyboardInterrupt() | click.exceptions.Abort():
            return "interrupted", None, 130
        case OSError(strerror=str()):
            return f"{error.filename or 'the system'}: {error.strerror}", "`glmctl doctor` checks the host", 1
    where = traceback.extract_tb(error.__traceback__)[-1]
    message = f"unexpected error: {type(error).__name__}: {error}".removesuffix(": ")
    return f"{message} ({where.name}, line {where.lineno})", "--debug prints the traceback", 1


def _fail(options: Options, message: str, hint: str | None, code: int) -> int:
    options.display.close()
    if options.json:
        click.echo(_document(message, hint, code))
    click.echo(f"glmctl: {message}" + (f"\n        {hint}" if hint else ""), err=True)
    return code


def _document(message: str, hint: str | None, code: int) -> str:
    return json.dumps({"error": {"message": message, "hint": hint, "exit_code": code}})
