"""Addresses that are added to the public socket, and removed from it, while it serves.

systemd opens no further address of a socket unit that is active: a daemon-reload only warns, and a restart closes the
addresses that are in use. But whatever a unit holds when the manager reads its configuration again goes to the unit
that its name leads to then. So a second unit opens the new address, its name is made an alias of glm.socket, and after
one daemon-reload glm.socket holds both. The descriptors stay the same: nothing that waits in a backlog is lost.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from deploy.errors import GlmError, Refused
from deploy.host import Host
from deploy.systemd import listener, units
from deploy.systemd.systemctl import Systemd
from deploy.systemd.units import Addresses
from service.contract import atomic

__all__ = ["add", "remove"]

_SOCKET = "glm.socket"
_JOINING = "glm-joining.socket"
"""The unit that opens an address, until glm.socket has it."""


def add(host: Host, address: str) -> None:
    """Make glm.socket listen on `address` too. Slots that are started from then on serve it.

    Raises Refused, with nothing changed, if glm.socket is not active or cannot listen on `address`.
    """
    systemd, present = _active(host)
    path = host.units / _JOINING
    _discard(systemd, path)
    atomic.write_text(path, _text(host, replace(present, listen=address, more=())))
    try:
        systemd.daemon_reload()
        systemd.start(_JOINING)
    except GlmError as error:
        _discard(systemd, path)
        raise Refused(f"systemd cannot listen on {address}: {error}", hint="`glmctl listen list`") from error
    # in this order: an alias without the address in glm.socket would have the address closed
    atomic.write_text(host.units / _SOCKET, _text(host, replace(present, more=(*present.more, address))))
    path.unlink()
    path.symlink_to(_SOCKET)
    try:
        systemd.daemon_reload()
    finally:
        path.unlink()
    systemd.daemon_reload()
    if not listener.listens(host, address):
        atomic.write_text(host.units / _SOCKET, _text(host, present))
        systemd.daemon_reload()
        raise Refused(
            f"systemd did not pass {address} on to {_SOCKET}", hint="the other addresses are served as before"
        )


def remove(host: Host, address: str) -> None:
    """Make glm.socket listen on `address` no more. Slots that run have it until they are stopped.

    Raises Refused if it does not listen on it, or on no other.
    """
    systemd, present = _active(host)
    if address not in present.service:
        raise Refused(f"{_SOCKET} does not listen on {address}", hint=f"it listens on {' and '.join(present.service)}")
    left = [each for each in present.service if each != address]
    if not left:
        raise Refused(f"{address} is the only address", hint="`glmctl listen add IP:PORT` adds the new one first")
    _discard(systemd, host.units / _JOINING)
    if units.install(host, replace(present, listen=left[0], more=tuple(left[1:]))) != [host.units / _SOCKET]:
        systemd.restart_if_active("glm-ui.service")  # the page uses the first address


def _active(host: Host) -> tuple[Systemd, Addresses]:
    systemd = Systemd(host.user)
    if systemd.state(_SOCKET).active != "active":
        raise Refused(f"{_SOCKET} is not active", hint="`glmctl install --listen IP:PORT` sets the address then")
    if fault := listener.fault_of(host):
        raise Refused(fault.what, hint=fault.fix)
    return systemd, listener.addresses(host)


def _text(host: Host, addresses: Addresses) -> str:
    return units.render(host, addresses)[host.units / _SOCKET]


def _discard(systemd: Systemd, path: Path) -> None:
    """Remove what an interrupted call left: a unit, whose socket nobody serves, or an alias."""
    is_unit = path.exists() and not path.is_symlink()
    if is_unit:
        systemd.stop(_JOINING)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        systemd.daemon_reload()
