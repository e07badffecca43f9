"""The operator's own commands around a cutover."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from typing import Literal

from deploy.errors import NotReady, Refused
from deploy.journal.journal import HookRun
from deploy.policy import Policy
from deploy.rollout.plan import Rollout

__all__ = ["When", "run"]

When = Literal["pre_cutover", "post_cutover", "on_rollback"]

_SAID = 300  # characters of what a command says that are kept


def run(rollout: Rollout, when: When) -> None:
    """Run the commands of one moment in order, and note in the journal how each ended.

    Raises NotReady if one of `pre_cutover` fails; what others do only gets a line.
    """
    try:
        hooks = Policy.of(rollout.context.host).hooks
    except Refused as error:
        if when == "pre_cutover":
            raise
        rollout.context.display.line(f"[yellow]note[/] no {when} hooks: {error}")  # too late to refuse anything
        return
    for command in getattr(hooks, when):
        rollout.context.display.progress(f"{when}: {command}")
        ran = _run(command, when, rollout, hooks.timeout)
        rollout.entry.record.hooks.append(ran)
        if ran.code == 0:
            continue
        failed = f"the {when} hook `{command}` {ran.how}" + (f": {ran.output}" if ran.output else "")
        if when == "pre_cutover":
            raise NotReady(failed, hint=f"{rollout.context.host.policy} names it")
        rollout.context.display.line(f"[yellow]note[/] {failed}")


def _run(command: str, when: When, rollout: Rollout, timeout: float) -> HookRun:
    began = time.monotonic()
    told = json.dumps({"event": when} | rollout.entry.record.model_dump())
    code, said = None, ""
    try:
        # in a session of its own, so that what it began ends with it
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
        code, said = 127, str(error)
    else:
        with process:
            try:
                said, _ = process.communicate(told, timeout=timeout)
                code = process.returncode
            except subprocess.TimeoutExpired:
                _kill(process)
            except BaseException:
                _kill(process)
                raise
    seconds = round(time.monotonic() - began, 3)
    return HookRun(when=when, command=command, code=code, seconds=seconds, output=said.strip()[-_SAID:])


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
