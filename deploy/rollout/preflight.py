"""The first phase: refuse what cannot work, before anything is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from deploy.errors import Refused
from deploy.journal.journal import Journal
from deploy.policy import Policy
from deploy.rollout import memory
from deploy.rollout.plan import Plan, Rollout, Tools
from deploy.rollout.warmth import is_warm

__all__ = ["preflight", "rehearse", "require_units"]

_NEEDED = 16 << 20  # bytes for the journal


def preflight(rollout: Rollout) -> None:
    """Refuse what cannot work, before anything is touched."""
    rollout.enter("preflight", f"release {rollout.plan.version}: digests, disk, units")
    _require_possible(rollout.tools, rollout.plan)


def rehearse(tools: Tools, plan: Plan) -> None:
    """Preflight without a rollout: refuse what cannot work, write nothing."""
    tools.display.phase("preflight", f"release {plan.version}: digests, disk, units")
    _require_possible(tools, plan)


def _require_possible(tools: Tools, plan: Plan) -> None:
    require_units(tools)
    Policy.of(tools.host)
    if (plan.canary or plan.mirror) and (tools.host.setting("HANDOFF") or "").lower() in {"false", "0", "no", "off"}:
        raise Refused(
            "with GLM_HANDOFF off no connection changes hands, so no request could be the candidate's",
            hint=f"take it out of {tools.host.settings}",
        )
    for path in (tools.host.state, tools.host.root):
        free = shutil.disk_usage(path).free
        if free < _NEEDED:
            raise Refused(f"the disk of {path} is full", hint="`glmctl release prune` makes room")
    if not os.access(tools.host.root, os.W_OK):
        raise Refused(f"{tools.host.root} cannot be written to", hint="run it as root, or with --user")
    size = tools.releases.get(plan.version).manifest.size
    _require_memory(tools, plan)
    with tools.display.bytes(f"digests of {plan.version}", size) as advance:
        tools.releases.verify(plan.version, advance)


def _require_memory(tools: Tools, plan: Plan) -> None:
    if is_warm(tools, tools.slots.idle, plan.version):
        return
    wanted = memory.require(tools, plan)
    if plan.strategy == "swap" and (live := tools.slots.live):
        _tell_of_the_wait(tools, plan, live, wanted)


def _tell_of_the_wait(tools: Tools, plan: Plan, live: str, wanted: memory.Need) -> None:
    """What a swap means for clients, before it begins."""
    seconds = Journal(tools.host).last_load()
    wait = f"about {seconds:.0f} s, as the last load took" if seconds else "as long as the load takes, unknown so far"
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    backlog = min(tools.systemd.backlog(), somaxconn)
    tools.display.line(
        f"{'':10}{plan.version} needs {wanted}; {live} leaves first, and clients wait {wait}, at most "
        f"{plan.deadline:g} s. Up to {backlog} new connections wait in the socket's backlog, and as many kept ones in "
        f"{live}'s; who has a shorter time-out of his own gives up."
    )


def require_units(tools: Tools) -> None:
    """Refuse to go on without our units, or with units that serve another root."""
    for unit in ("glm.socket", "glm@blue.service", "glm@green.service"):
        if tools.systemd.state(unit).exists:
            continue
        if (tools.host.units / "glm.socket").exists():
            systemctl = " ".join(tools.systemd.argv("daemon-reload"))
            raise Refused(f"the service manager does not answer, or knows nothing of {unit}", hint=systemctl)
        raise Refused(f"{unit} is not installed", hint="`glmctl install` installs our units")
    root = tools.systemd.environment("glm@blue.service").get("GLM_ROOT")
    if root != str(tools.host.root):
        raise Refused(
            f"the installed units serve {root}, not {tools.host.root}", hint="--root, or `glmctl install --root`"
        )
