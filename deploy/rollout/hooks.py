"""The operator's commands around a cutover."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from typing import Literal

from deploy.errors import NotReady, Refused
from deploy.journal.record import HookRun
from deploy.policy import Policy
from deploy.rollout.plan import Context, Rollout

__all__ = ["When", "require", "run"]

When = Literal["pre_cutover", "post_cutover", "on_rollback"]

_KEPT = 300  # characters of a command's output in the record
_NOT_FOUND = 127  # the exit code of a shell for a command that cannot be run


def require(context: Context) -> None:
    """Look for the programs of the pre_cutover hooks; raises Refused if one is missing, or glm.toml is invalid."""
    for command in Policy.of(context.host).hooks.pre_cutover:
        try:
            program = shlex.split(command)[0]
        except ValueError as error:
            raise Refused(f"the pre_cutover hook `{command}` is not a command: {error}") from error
        if shutil.which(program) is None:
            raise Refused(
                f"the pre_cutover hook `{command}` cannot be run: there is no program {program}",
                hint=f"it is configured in {context.host.policy}",
            )


def run(rollout: Rollout, when: When) -> None:
    """Run the commands of `when` in order and add them to the record.

    Raises NotReady if one of `pre_cutover` fails, and Refused if glm.toml is invalid then; later failures are displayed
    and change nothing.
    """
    try:
        hooks = Policy.of(rollout.context.host).hooks
    except Refused as error:
        if when == "pre_cutover":
            raise
        rollout.context.display.line(f"[yellow]note[/] the {when} hooks were not run: {error}")
        return
    for command in getattr(hooks, when):
        rollout.context.display.progress(f"{when}: {command}")
        done = _run(command, when, rollout, hooks.timeout)
        rollout.record.hooks.append(done)
        if done.code == 0:
            continue
        failure = f"the {when} hook `{command}` {done.result}" + (f": {done.output}" if done.output else "")
        if when == "pre_cutover":
            raise NotReady(failure, hint=f"it is configured in {rollout.context.host.policy}")
        rollout.context.display.line(f"[yellow]note[/] {failure}")


def _run(command: str, when: When, rollout: Rollout, timeout: float) -> HookRun:
    began = time.monotonic()
    document = json.dumps({"event": when} | rollout.record.model_dump())
    code, output = None, ""
    try:
        # in a session of its own, so that its children can be killed with it
        process = subprocess.Popen(
            shlex.split(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        code, output = _NOT_FOUND, str(error)
    else:
        with process:
            try:
                output, _ = process.communicate(document, timeout=timeout)
                code = process.returncode
            except subprocess.TimeoutExpired:
                _kill(process)
            except BaseException:
                _kill(process)
                raise
    seconds = round(time.monotonic() - began, 3)
    return HookRun(when=when, command=command, code=code, seconds=seconds, output=output.strip()[-_KEPT:])


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
