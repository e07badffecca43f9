"""Who may use an installation of the system manager: its group reads, root and operators change it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from deploy.errors import Refused
from deploy.host import Host

__all__ = ["require_change", "require_journal", "require_read"]

_JOURNALS = (Path("/var/log/journal"), Path("/run/log/journal"))


def require_read(host: Host) -> None:
    """Refuse a user who may not see the state of the host: it would be taken for an empty one."""
    for directory in (host.root, host.state, host.runtime):
        if directory.is_dir() and not os.access(directory, os.R_OK | os.X_OK):
            raise Refused(
                f"{_user()} may not read {directory}",
                hint=f"members of the group glm may: `usermod -aG glm {_user()}` as root, then log in again",
            )


def require_change(host: Host) -> None:
    """Refuse a user who may not change the host, before anything is begun."""
    for directory in _existing(host):
        if not os.access(directory, os.W_OK):
            raise Refused(
                f"{_user()} may not change {directory}",
                hint="members of the group glm-operators: `sudo glmctl-operator` with the same words; "
                "--user is for an installation of your own",
            )


def require_journal(host: Host, journals: tuple[Path, ...] = _JOURNALS) -> None:
    """Refuse a user to whom journalctl would show nothing of the system's units. `journals`: where journald writes."""
    found = [file for directory in journals for file in directory.glob("*/system.journal")]
    if not host.user and found and not any(os.access(file, os.R_OK) for file in found):
        raise Refused(
            f"{_user()} may not read the system's journal",
            hint=f"members of the group systemd-journal may: `usermod -aG systemd-journal {_user()}` as root, "
            "then log in again",
        )


def _existing(host: Host) -> list[Path]:
    return [directory for directory in (host.state, host.root) if directory.is_dir()]


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"
