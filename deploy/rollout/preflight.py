"""The first phase: refuse what cannot work, before anything is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from deploy.errors import Refused
from deploy.journal.journal import Journal
from deploy.policy import Policy
from deploy.rollout import memory
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.rollout.warmth import is_warm

__all__ = ["preflight", "rehearse", "require_units"]

_NEEDED = 16 << 20  # bytes for the journal


def preflight(rollout: Rollout) -> None:
    """Refuse what cannot work, before anything is touched."""
    rollout.enter("preflight", f"release {rollout.plan.version}: digests, disk, units")
    _require_possible(rollout.context, rollout.plan)


def rehearse(context: Context, plan: Plan) -> None:
    """Preflight without a rollout: refuse what cannot work, write nothing."""
    context.display.phase("preflight", f"release {plan.version}: digests, disk, units")
    _require_possible(context, plan)


def _require_possible(context: Context, plan: Plan) -> None:
    require_units(context)
    Policy.of(context.host)
    if (plan.canary or plan.mirror) and (context.host.setting("HANDOFF") or "").lower() in {"false", "0", "no", "off"}:
        raise Refused(
            "with GLM_HANDOFF off no connection changes hands, so no request could be the candidate's",
            hint=f"take it out of {context.host.settings}",
        )
    for path in (context.host.state, context.host.root):
        free = shutil.disk_usage(path).free
        if free < _NEEDED:
            raise Refused(f"the disk of {path} is full", hint="`glmctl release prune` makes room")
    if not os.access(context.host.root, os.W_OK):
        raise Refused(f"{context.host.root} cannot be written to", hint="run it as root, or with --user")
    size = context.releases.get(plan.version).manifest.size
    _require_memory(context, plan)
    with context.display.bytes(f"digests of {plan.version}", size) as advance:
        context.releases.verify(plan.version, advance)


def _require_memory(context: Context, plan: Plan) -> None:
    if is_warm(context, context.slots.idle, plan.version):
        return
    wanted = memory.require(context, plan)
    if plan.strategy == "swap" and (live := context.slots.live):
        _tell_of_the_wait(context, plan, live, wanted)


def _tell_of_the_wait(context: Context, plan: Plan, live: str, wanted: memory.Need) -> None:
    """What a swap means for clients, before it begins."""
    seconds = Journal(context.host).last_load()
    wait = f"about {seconds:.0f} s, as the last load took" if seconds else "as long as the load takes, unknown so far"
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    backlog = min(context.systemd.backlog(), somaxconn)
    context.display.line(
        f"{'':10}{plan.version} needs {wanted}; {live} leaves first, and clients wait {wait}, at most "
        f"{plan.deadline:g} s. Up to {backlog} new connections wait in the socket's backlog, and as many kept ones in "
        f"{live}'s; who has a shorter time-out of his own gives up."
    )


def require_units(context: Context) -> None:
    """Refuse to go on without our units, or with units that serve another root."""
    for unit in ("glm.socket", "glm@blue.service", "glm@green.service"):
        if context.systemd.state(unit).exists:
            continue
        if (context.host.units / "glm.socket").exists():
            systemctl = " ".join(context.systemd.argv("daemon-reload"))
            raise Refused(f"the service manager does not answer, or knows nothing of {unit}", hint=systemctl)
        raise Refused(f"{unit} is not installed", hint="`glmctl install` installs our units")
    root = context.systemd.environment("glm@blue.service").get("GLM_ROOT")
    if root != str(context.host.root):
        raise Refused(
            f"the installed units serve {root}, not {context.host.root}", hint="--root, or `glmctl install --root`"
        )
