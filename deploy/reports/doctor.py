"""Checks of a host: units, sockets, links, workers and disks, each with a fix where something is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict

from deploy.display import size
from deploy.errors import GlmError
from deploy.journal.journal import Journal
from deploy.reports import devices, files
from deploy.reports.files import Finding
from deploy.reports.report import interruption
from deploy.rollout import memory
from deploy.rollout.plan import Context
from deploy.rollout.preflight import require_units
from deploy.rollout.slot_client import PublicSocket
from deploy.systemd import listener
from deploy.systemd.units import outdated
from service.contract.generations import current
from service.contract.slots import SLOTS

__all__ = ["Finding", "examine"]

_MIN_FREE = 1 << 30  # bytes


def examine(context: Context) -> list[Finding]:
    """Run all checks, each before those that depend on it; without units nothing else is checked."""
    try:
        require_units(context)
    except GlmError as error:
        return [Finding("units", good=False, what=str(error), fix=error.hint)]
    return [
        *_units(context),
        *_service(context),
        *_rollouts(context),
        *files.examine(context),
        *_disks(context),
        *_devices(context),
    ]


def _units(context: Context) -> Iterator[Finding]:
    if found := outdated(context.host):
        what = f"{', '.join(found)} were installed by another version of glmctl"
        yield Finding("units", good=False, what=what, fix="glmctl install")
    else:
        yield Finding("units", good=True, what="units are installed")


def _rollouts(context: Context) -> Iterator[Finding]:
    for record in Journal(context.host).interrupted():
        what, _, fix = interruption(record).partition(": ")
        yield Finding("interrupted", good=False, what=what, fix=fix.replace("`", ""))


def _service(context: Context) -> Iterator[Finding]:
    systemctl = " ".join(context.systemd.argv()[:-1])
    socket = context.systemd.state("glm.socket")
    listen = context.systemd.listen()
    if fault := listener.fault_of(context.host):
        yield Finding("socket", good=False, what=fault.what, fix=fault.fix)
    elif socket.active == "active":
        yield Finding("socket", good=True, what=f"glm.socket listens on {listen}")
    else:
        yield Finding("socket", good=False, what=f"glm.socket is {socket.active}", fix=f"{systemctl} start glm.socket")
    for slot in SLOTS:
        target = context.slots.target(slot)
        if target and not (context.host.root / target / "release.json").exists():
            what = f"{slot} points to {target}, which is no release"
            yield Finding("slot-link", good=False, what=what, fix="glmctl deploy VERSION")
    live = context.slots.live
    if live is None and context.slots.fault:
        return  # among the files
    if live is None:
        fix = "glmctl release add PATH; glmctl deploy VERSION"
        yield Finding("no-live-slot", good=False, what="no slot is live", fix=fix)
        return
    unit = context.host.unit(live)
    generation = current(context.host.runtime, live)
    if generation is None or not generation.is_serving:
        status = context.systemd.state(unit).status
        yield Finding(
            "not-ready",
            good=False,
            what=f"{live} is live but not ready" + (f" (status of {unit}: {status})" if status else ""),
            fix=f"{systemctl} start {unit}; glmctl rollback",
        )
        return
    answered = PublicSocket(listen).slot() if listen else None
    yield Finding(
        "public-socket",
        good=answered == live,
        what=f"{live} is live with {generation.version}; "
        + (f"{answered} answers on the public socket" if answered else "the public socket does not answer"),
        fix=None if answered == live else f"{systemctl} status {unit}",
    )
    idle = current(context.host.runtime, context.slots.idle)
    if idle is not None and idle.gate == "open":
        unit = context.host.unit(idle.slot)
        what = f"{idle.slot} is not live but its gate is open"
        yield Finding("open-gate", good=False, what=what, fix=f"{systemctl} stop {unit}")


def _disks(context: Context) -> Iterator[Finding]:
    for path in sorted({context.host.root, context.host.state}):
        free = shutil.disk_usage(path).free if path.exists() else 0
        yield Finding(
            "disk",
            good=free >= _MIN_FREE,
            what=f"{path}: {size(free)} free",
            fix=None if free >= _MIN_FREE else "glmctl release prune --keep 2",
        )


def _devices(context: Context) -> Iterator[Finding]:
    """What the slots hold of each device; nothing is wrong where no other copy fits, but with a file or a driver."""
    try:
        found = devices.examine(context, memory.survey(context).held)
    except GlmError as error:
        yield Finding("devices", good=False, what=str(error), fix=error.hint)
        return
    for view in found:
        yield Finding("devices", good=True, what=devices.text(asdict(view)))
