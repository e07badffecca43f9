"""The operator's commands around a cutover."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Literal

from deploy.errors import NotReady, Refused
from deploy.journal.record import HookRun
from deploy.policy import Policy
from deploy.rollout.plan import Context, Rollout

__all__ = ["When", "advance", "begin", "finish", "require", "run", "stop"]

When = Literal["pre_cutover", "post_cutover", "on_rollback"]

_KEPT = 300  # characters of a command's output in the record
_POLL = 0.02  # seconds
_UMASK = 0o022  # glmctl's own would keep what a command writes from other users
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


def run(rollout: Rollout, when: When, watch: Callable[[], None] = lambda: None) -> None:
    """Run the commands of `when` in order and add them to the record; those that were begun before are finished first.

    `watch` is called several times a second meanwhile; if it raises, the command is killed. Raises NotReady if one of
    `pre_cutover` fails, and Refused if glm.toml is invalid then; later failures are displayed and change nothing.
    """
    finish(rollout)
    for _ in _run(rollout, when):
        watch()


def begin(rollout: Rollout, when: When) -> None:
    """Run the commands of `when` beside what follows, in which `advance` is to be called again and again."""
    rollout.hooks = _run(rollout, when)
    advance(rollout)


def advance(rollout: Rollout) -> bool:
    """Go on with the commands that were begun; returns whether they have ended."""
    return rollout.hooks is None or next(rollout.hooks, True) is True


def finish(rollout: Rollout) -> None:
    """Wait for the commands that were begun."""
    while not advance(rollout):
        pass


def stop(rollout: Rollout) -> None:
    """Kill the command that was begun, and run no further one."""
    if rollout.hooks is not None:
        rollout.hooks.close()


def _run(rollout: Rollout, when: When) -> Generator[None]:
    """Run the commands in order; yields several times a second while one runs, and kills it when it is closed."""
    try:
        hooks = Policy.of(rollout.context.host).hooks
    except Refused as error:
        if when == "pre_cutover":
            raise
        rollout.context.display.line(f"[yellow]note[/] the {when} hooks were not run: {error}")
        return
    for command in getattr(hooks, when):
        rollout.context.display.progress(f"{when}: {command}")
        done = yield from _run_command(command, when, rollout, hooks.timeout)
        rollout.record.hooks.append(done)
        if done.code == 0:
            continue
        failure = f"the {when} hook `{command}` {done.result}" + (f": {done.output}" if done.output else "")
        if when == "pre_cutover":
            raise NotReady(failure, hint=f"it is configured in {rollout.context.host.policy}")
        rollout.context.display.line(f"[yellow]note[/] {failure}")


def _run_command(command: str, when: When, rollout: Rollout, timeout: float) -> Generator[None, None, HookRun]:
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
            umask=_UMASK,
        )
    except (OSError, ValueError) as error:
        code, output = _NOT_FOUND, str(error)
    else:
        with process:
            try:
                stdin: str | None = document
                while time.monotonic() < began + timeout:
                    with suppress(subprocess.TimeoutExpired):
                        output, _ = process.communicate(stdin, timeout=_POLL)
                        code = process.returncode
                        break
                    stdin = None  # later calls go on with the first one's
                    yield
                else:
                    _kill(process)
            except BaseException:
                _kill(process)
                raise
    seconds = round(time.monotonic() - began, 3)
    return HookRun(when=when, command=command, code=code, seconds=seconds, output=output.strip()[-_KEPT:])


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
