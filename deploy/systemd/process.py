"""Starts the programs of the service manager; no other module of this package starts a process."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.errors import GlmError
from deploy.systemd import programs


def run(argv: Sequence[str], *, check: bool = True, env: Mapping[str, str] | None = None) -> str:
    """Run `argv` and return its stdout; raises GlmError with the last line of its output if it fails.

    `check`: whether an exit code other than 0 is an error. A program that is not installed always is.
    """
    with _known(argv):
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False, env=env)
    if check and done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()
        raise GlmError(f"{shlex.join(argv)} failed ({done.returncode}): {last[-1] if last else 'no message'}")
    return done.stdout


def start(argv: Sequence[str]) -> subprocess.Popen[str]:
    """Start `argv` and return the process, for callers that show progress while it runs; raises GlmError.

    It has a process group of its own: Ctrl-C in a terminal reaches only the caller, which decides when to end it.
    """
    with _known(argv):
        return subprocess.Popen(
            argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", process_group=0
        )


@contextmanager
def _known(argv: Sequence[str]) -> Iterator[None]:
    """Refuse a program that preflight does not look for (ValueError); raises GlmError if it is missing all the same."""
    if argv[0] not in (*programs.ROLLOUT, *programs.INSTALL):
        raise ValueError(f"{argv[0]} is not in deploy.systemd.programs.ROLLOUT or INSTALL")
    try:
        yield
    except FileNotFoundError as error:
        raise GlmError(f"{argv[0]} is not installed", hint=f"required for: {shlex.join(argv)}") from error


def start_daemon(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own, its output appended to `log`; raises GlmError if it is not installed."""
    with log.open("ab") as output:
        try:
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except FileNotFoundError as error:
            raise GlmError(f"{argv[0]} is not installed", hint="install systemd and util-linux") from error


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Terminate a process and wait for it; kill it if it still runs after `seconds`."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
