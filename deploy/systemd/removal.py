"""Removal of an installation: which units are stopped and which files deleted, as a plan that can be shown first."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import GlmError
from deploy.host import Host
from deploy.systemd import units
from deploy.systemd.host_files import HostFiles
from deploy.systemd.process import run
from deploy.systemd.systemctl import Systemd
from service.contract.slots import SLOTS

__all__ = ["Removal", "of"]

_CACHES = (Path("/var/cache/glm"), Path("/var/cache/glm-ui"))
_TIMERS = ("glm-guard-*.timer", "glm-retire-*.timer")


@dataclass(frozen=True)
class Removal:
    """What is stopped, in that order, and what is deleted."""

    host: Host
    units: tuple[str, ...]
    paths: tuple[Path, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.units and not self.paths

    def carry_out(self, report: Callable[[str], None] = lambda _: None) -> None:
        """Stop the units, delete the files, and make the manager forget them; raises GlmError.

        `report` is told what begins. The socket is first: no client waits for a server that will not come.
        """
        systemd = Systemd(self.host.user)
        run(systemd.argv("stop", *_TIMERS), check=False)
        for unit in self.units:
            report(f"stopping {unit}")
            systemd.stop(unit)
        run(systemd.argv("disable", *(name for name in units.UNITS if "@" not in name)), check=False)
        for path in self.paths:
            report(f"deleting {path}")
            try:
                _delete(path)
            except OSError as error:
                raise GlmError(
                    f"cannot delete {error.filename}: {error.strerror}", hint="repeat the command"
                ) from error
        for directory in {path.parent for path in self.paths if path.parent.parent == self.host.units}:
            with suppress(OSError):  # an operator's drop-ins are in it
                directory.rmdir()
        with suppress(OSError):  # releases, or somebody's files
            self.host.root.rmdir()
        systemd.daemon_reload()


def of(host: Host, *, purge: bool, files: HostFiles | None = None) -> Removal:
    """Return what is there to be removed. `purge`: also what clients and operators made, not only the programs' files.

    `files`: those outside the unit directory; the system manager's are in /etc and /usr/local/bin if None.
    """
    systemd = Systemd(host.user)
    sockets = ("glm.socket", "glm-ui.socket", "glm-operate.socket")
    names = ("glm.target", *sockets, "glm-live.service", *map(host.unit, SLOTS), "glm-ui.service")
    active = tuple(name for name in names if systemd.state(name).active not in {"", "inactive", "failed"})
    installed = sorted(path for path in units.paths(host) if path.exists())
    if not host.user:
        installed += (files or HostFiles(host)).present()
    installed += [host.runtime] if host.runtime.exists() and (installed or purge) else []
    return Removal(host, active, (*installed, *(_data(host) if purge else ())))


def _data(host: Host) -> list[Path]:
    """Return what is left of an installation: only names that are its own, whatever else lies in its root."""
    root = [host.releases, *(path for path in sorted(host.root.glob("*")) if path.is_symlink())]
    settings = [host.settings.parent] if host.settings.parent.name == "glm" else [host.settings, host.policy, host.keys]
    caches = [] if host.user else _CACHES
    return [path for path in (*root, host.state, *settings, *caches) if path.exists() or path.is_symlink()]


def _delete(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for directory in [path, *path.rglob("*")]:  # releases are read-only
        if directory.is_dir() and not directory.is_symlink():
            directory.chmod(stat.S_IRWXU)
    shutil.rmtree(path)
