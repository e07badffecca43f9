"""The public socket: the address in its unit file, the one that the manager has loaded, and whether that listens.

A `daemon-reload` after the address was changed closes the socket that the manager holds, and opens no other. The slots
that run keep serving the former address, and those that are started later get no socket at all.
"""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from deploy.errors import Refused
from deploy.host import Host
from deploy.systemd import units
from deploy.systemd.systemctl import Systemd
from deploy.systemd.units import Addresses
from service.contract.processes import descriptors
from service.contract.slots import SLOTS

__all__ = ["Fault", "addresses", "fault_of", "listens", "require_same"]

_SOCKET = "glm.socket"
_LIVE = "glm-live.service"  # which the socket starts
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_LISTEN = "0A"  # a state in /proc/net/tcp


@dataclass(frozen=True)
class Fault:
    """What is wrong with the public socket."""

    what: str
    fix: str
    """Commands that repair it."""
    is_public: bool = True
    """Whether a slot that is started now would be unreachable; else only a later daemon-reload does harm."""


def addresses(host: Host) -> Addresses:
    """Return the addresses that an installation keeps: what glm.socket listens on, else those of the unit files."""
    installed = units.installed(host)
    systemd = Systemd(host.user)
    if systemd.state(_SOCKET).active == "active" and (found := systemd.addresses()):
        return replace(installed, listen=found[0], more=found[1:])
    return installed


def require_same(host: Host, address: str) -> None:
    """Refuse another address while glm.socket is active or a slot runs: the change would close the public socket."""
    systemd = Systemd(host.user)
    present = systemd.addresses()
    active = [_SOCKET] if systemd.state(_SOCKET).active == "active" else _running(host)
    if active and present and address not in present:
        old = present[0]
        raise Refused(
            f"{active[0]} is active with the address {old}; another one would close the public socket",
            hint=f"{_glmctl(host, 'listen add')} {address} && {_glmctl(host, 'listen remove')} {old}"
            "   (both are served in between; no request is lost)",
        )


def fault_of(host: Host) -> Fault | None:
    """Return what is wrong with the public socket, if a slot runs or the socket is active; None if nothing is.

    `systemctl restart glm.socket` is one way to get there: the slots that run still have the address, so that systemd
    cannot listen on it again, or refuses to while glm-live.service waits for the live slot.
    """
    systemd = Systemd(host.user)
    found, active, running = systemd.addresses(), systemd.state(_SOCKET).active, _running(host)
    # not restart, which may start the socket while a slot that is to stop still has the address; glm-live.service may
    # begin to run at any time, and systemd refuses to start a socket whose service runs
    stopped = " ".join([_SOCKET, _LIVE, *(unit for unit in running if unit != _LIVE)])
    restart = f"{_systemctl(host)} stop {stopped} && {_systemctl(host)} start {' '.join([_SOCKET, *running])}"
    if active != "active":
        if not running:
            return None
        run = "runs" if len(running) == 1 else "run"
        return Fault(f"{_SOCKET} is {active}, while {' and '.join(running)} {run}: new slots get no socket", restart)
    if deaf := [address for address in found or ("",) if not listens(host, address)]:
        return Fault(f"{_SOCKET} is active but does not listen on {deaf[0]}: new slots get no socket", restart)
    installed = units.installed(host).service
    if set(installed) != set(found):
        return Fault(
            f"{_SOCKET} listens on {' and '.join(found)}, but its unit file has {' and '.join(installed)}: "
            "a daemon-reload would close it",
            f"{_glmctl(host, 'install')} --listen {found[0]}",
            is_public=False,
        )
    return None


def _systemctl(host: Host) -> str:
    return "systemctl --user" if host.user else "systemctl"


def _glmctl(host: Host, verb: str) -> str:
    root = "" if host.root == Host.find(user=host.user).root else f" --root {host.root}"
    return f"glmctl {verb}{' --user' if host.user else ''}{root}"


def _running(host: Host) -> list[str]:
    """Return the units that run of those that glm.socket starts, or that have its listening socket."""
    systemd = Systemd(host.user)
    names = [*(host.unit(slot) for slot in SLOTS), _LIVE]
    return [name for name in names if systemd.state(name).active not in {"", "inactive", "failed"}]


def listens(host: Host, address: str) -> bool:
    """Return whether the manager has a socket that listens on `address`.

    True for what is no IP address. If this user may not see the manager's descriptors, any process's socket counts.
    """
    try:
        sockets = _listening(address)
    except (ValueError, OSError):
        return True
    try:
        found = descriptors(_manager_pid(host))
    except OSError:
        return bool(sockets)
    return any(f"socket:[{inode}]" in found for inode in sockets)


def _manager_pid(host: Host) -> int:
    """Return the pid of the service manager; raises OSError if it does not run."""
    if not host.user:
        return 1
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(host.runtime.with_name("systemd") / "private"))
        credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[0])


def _listening(address: str) -> list[str]:
    """Return the inodes of the sockets that listen on an address; raises ValueError for one that is not IP:PORT."""
    host, _, port = address.rpartition(":")
    ip = ip_address(host.strip("[]"))
    words = [ip.packed[start : start + 4] for start in range(0, len(ip.packed), 4)]
    wanted = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{int(port):04X}"
    table = Path("/proc/net/tcp" if ip.version == 4 else "/proc/net/tcp6").read_text()
    rows = [line.split() for line in table.splitlines()[1:]]
    return [row[9] for row in rows if row[1] == wanted and row[3] == _LISTEN]
