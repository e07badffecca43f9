"""What is wrong with this host, and how to fix it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from deploy.errors import GlmError
from deploy.host import SLOTS
from deploy.journal.accounts import current
from deploy.rollout.plan import Context
from deploy.rollout.preflight import require_units
from deploy.rollout.slot_client import PublicSocket

_LOW = 1 << 30  # bytes below which an operator should know


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    good: bool
    what: str
    fix: str | None = None


def examine(context: Context) -> list[Finding]:
    """Look at units, sockets, links, releases and disks, in the order in which they depend on each other."""
    try:
        require_units(context)
    except GlmError as error:
        return [Finding(good=False, what=str(error), fix=error.hint)]
    return [Finding(good=True, what="units are installed"), *_service(context), *_disks(context)]


def _service(context: Context) -> Iterator[Finding]:
    systemctl = " ".join(context.systemd.argv()[:-1])
    socket = context.systemd.state("glm.socket")
    if socket.active == "active":
        yield Finding(good=True, what=f"glm.socket listens on {context.systemd.listen()}")
    else:
        yield Finding(good=False, what=f"glm.socket is {socket.active}", fix=f"{systemctl} start glm.socket")
    for slot in SLOTS:
        target = context.slots.target(slot)
        if target and not (context.host.root / target / "release.json").exists():
            yield Finding(
                good=False, what=f"{slot} leads to {target}, which is no release", fix="deploy another version"
            )
    live = context.slots.live
    if live is None:
        yield Finding(good=False, what="no slot is live", fix="glmctl release add PATH; glmctl deploy VERSION")
        return
    one = current(context.host, live)
    if one is None or not one.serves:
        unit = context.host.unit(live)
        yield Finding(
            good=False,
            what=f"{live} is live but does not serve ({context.systemd.state(unit).status or 'it says nothing'})",
            fix=f"{systemctl} start {unit}; glmctl rollback",
        )
        return
    listen = context.systemd.listen()
    answered = PublicSocket(listen).slot() if listen else None
    yield Finding(
        good=answered == live,
        what=f"{live} is live with {one.version}; the public socket was answered by {answered or 'nobody'}",
        fix=None if answered == live else f"{systemctl} status {context.host.unit(live)}",
    )
    idle = current(context.host, context.slots.idle)
    if idle is not None and idle.gate == "open":
        yield Finding(good=False, what=f"{idle.slot} takes connections too", fix=f"{systemctl} stop glm@{idle.slot}")


def _disks(context: Context) -> Iterator[Finding]:
    for path in sorted({context.host.root, context.host.state}):
        free = shutil.disk_usage(path).free if path.exists() else 0
        yield Finding(
            good=free >= _LOW,
            what=f"{path}: {free / (1 << 30):.1f} GiB free",
            fix=None if free >= _LOW else "glmctl release prune --keep 2",
        )
