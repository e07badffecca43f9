"""The programs that glmctl runs. What a command needs is looked for before it changes anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from deploy.errors import Refused

__all__ = ["ROLLOUT", "SANDBOX", "require"]

ROLLOUT = ("systemctl", "systemd-run")
"""Those of every rollout, whatever its strategy: units and timers. `process.run` starts no other one."""
SANDBOX = ("systemctl", "unshare", "setpriv", "nsenter", "mount", "env", "sh")
"""Those of the private service manager."""


def require(programs: Iterable[str] = ROLLOUT) -> None:
    """Look for `programs` on PATH; raises Refused with those that are missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise Refused(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on PATH",
            hint="install systemd and util-linux, or set PATH",
        )
