"""The only door to other programs."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence

from deploy.errors import GlmError


def run(argv: Sequence[str], *, check: bool = True, env: Mapping[str, str] | None = None) -> str:
    """Run `argv` to its end and return what it wrote; raises GlmError with its last words when it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False, env=env)
    except FileNotFoundError as error:
        raise GlmError(f"{argv[0]} is not installed", hint=f"needed for: {shlex.join(argv)}") from error
    if check and done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()
        raise GlmError(f"{shlex.join(argv)} failed ({done.returncode}): {last[-1] if last else 'no message'}")
    return done.stdout


def begin(argv: Sequence[str]) -> subprocess.Popen[str]:
    """Start `argv` and return it running, for callers that show progress meanwhile."""
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
