"""The programs that a rollout runs itself or through its units. They are looked for before anything is changed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from deploy.errors import Refused

__all__ = ["INSTALL", "ROLLOUT", "SANDBOX", "SCRIPTS", "UNITS", "require", "require_of_units"]

ROLLOUT = ("systemctl", "systemd-run")
"""Those of every rollout, whatever its strategy: units and timers."""
INSTALL = ("systemctl", "systemd-sysusers", "systemd-tmpfiles")
"""Those of an installation of the system manager. `process.run` starts these, those of a rollout, and no other one."""
SANDBOX = ("systemctl", "unshare", "setpriv", "nsenter", "mount", "env", "sh")
"""Those of the private service manager."""
UNITS = ("sh", "tail")
"""Those of the unit files: without them a unit that is stopped cuts its requests."""
SCRIPTS = ("glmctl", "gunicorn")
"""Those beside the interpreter: the timers run the first, the slots the second."""

_MANAGER_PATH = "/usr/local/bin:/usr/bin:/bin"  # where the service manager looks, whatever PATH is here


def require(programs: Iterable[str] = ROLLOUT) -> None:
    """Look for `programs` on PATH; raises Refused with those that are missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise Refused(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on PATH",
            hint="install systemd and util-linux, or set PATH",
        )


def require_of_units(interpreter: Path = Path(sys.executable), path: str = _MANAGER_PATH) -> None:
    """Look for what units and timers run later; raises Refused with the first that is missing.

    `interpreter`: the one whose scripts they run. `path`: the directories in which the service manager looks.
    """
    for program in UNITS:
        if shutil.which(program, path=path) is None:
            raise Refused(f"the units need {program}, which is not in {path}", hint="install coreutils and a shell")
    for script in SCRIPTS:
        found = interpreter.with_name(script)
        if shutil.which(found) is None:
            raise Refused(
                f"the units need {found}, which is missing or not executable",
                hint=f"`{interpreter} -m pip install -e CHECKOUT` installs it; then `glmctl install`",
            )
