"""Starts the programs of the service manager; no other module of this package starts a process."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.errors import GlmError
from deploy.systemd import programs

_DISCONNECTED = (
    "D-Bus connection terminated",
    "Transport endpoint is not connected",
    "Connection reset by peer",
    "disconnected from message bus without replying",
)
_TO_MANAGER = ("systemctl", "systemd-run")

RECONNECT = 30.0
"""Seconds within which a manager that executes itself anew answers again."""


def is_disconnected(stderr: str) -> bool:
    """Whether a command failed because the manager has closed its connection.

    A `daemon-reexec`, as in an upgrade of systemd, closes all of them, at whatever moment. Jobs and units are kept.
    """
    return any(text in stderr for text in _DISCONNECTED)


def run(argv: Sequence[str], *, check: bool = True, env: Mapping[str, str] | None = None) -> str:
    """Run `argv` and return its stdout; raises GlmError with the last line of its output if it fails.

    `check`: whether an exit code other than 0 is an error. A program that is not installed always is. A command to the
    manager is repeated while that executes itself anew; what it asks for may be done twice then.
    """
    deadline = time.monotonic() + RECONNECT
    while True:
        with _known(argv):
            done = subprocess.run(
                argv, capture_output=True, text=True, errors="replace", check=False, env=_environment(argv, env)
            )
        is_to_manager = argv[0] in _TO_MANAGER
        if not (done.returncode and is_to_manager and is_disconnected(done.stderr)) or time.monotonic() > deadline:
            break
        time.sleep(0.05)
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
            argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", process_group=0,
            env=_environment(argv, None),
        )  # fmt: skip


def _environment(argv: Sequence[str], env: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return the environment of a command; the messages of one to the manager are not translated."""
    return {**(os.environ if env is None else env), "LC_ALL": "C.UTF-8"} if argv[0] in _TO_MANAGER else env


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
