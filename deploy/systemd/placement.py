"""Where code and interpreter may lie: the units of the system manager hide some directories from the service."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from deploy.errors import Refused
from deploy.systemd.units import CODE

__all__ = ["of_this_program", "require_visible"]

_HIDDEN = {
    "/root": "ProtectHome=",
    "/home": "ProtectHome=",
    "/run/user": "ProtectHome=",
    "/tmp": "PrivateTmp=",  # noqa: S108  (no file is created there)
    "/var/tmp": "PrivateTmp=",  # noqa: S108
}


def of_this_program() -> dict[str, Path]:
    """Return what the units run: the code, the Python environment, and the interpreter that this is made of."""
    return {
        "the code": CODE,
        "the Python environment": Path(sys.prefix),
        "the Python interpreter": Path(sys.executable).resolve(),
    }


def require_visible(places: dict[str, Path] | None = None) -> None:
    """Look whether the user of the service can read what its units run; raises Refused with the first that it cannot.

    `places`: what is there, by its name; those of this program if None.
    """
    for name, path in (of_this_program() if places is None else places).items():
        for one in dict.fromkeys((path, path.resolve())):
            for directory, setting in _HIDDEN.items():
                if one.is_relative_to(directory):
                    raise Refused(
                        f"{name} is {one}, below {directory}, which {setting} of the units hides from the service",
                        hint="install it elsewhere, for example in /opt/glm, with a Python of the distribution; "
                        "or use --user",
                    )
            if closed := _closed(one):
                raise Refused(
                    f"{name} is {one}, and other users than root cannot enter {closed}",
                    hint=f"`chmod o+rx {closed}`, or install it elsewhere, for example in /opt/glm",
                )


def _closed(path: Path) -> Path | None:
    """Return the first directory on the way to `path`, or `path` itself, that others may not enter."""
    parents: Iterable[Path] = (*reversed(path.parents), path)
    for one in parents:
        try:
            mode = one.stat().st_mode
        except OSError:
            return one
        if stat.S_ISDIR(mode) and not mode & stat.S_IXOTH:
            return one
    return None
