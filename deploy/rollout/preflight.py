"""The preflight: refuses what cannot succeed, before anything is changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from deploy.errors import Refused
from deploy.journal.journal import Journal
from deploy.releases import digests
from deploy.rollout import hooks, memory, need
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.rollout.waiting import is_warm
from deploy.systemd import listener, programs
from deploy.systemd.units import outdated

__all__ = ["preflight", "rehearse", "require_units"]

_JOURNAL_SPACE = 16 << 20  # bytes
_FALSE = frozenset({"false", "0", "no", "off"})


def preflight(rollout: Rollout) -> None:
    """Check units, settings, disk and memory, and begin to compare the release with its digests; raises Refused.

    A swap gives up the running version before it loads the new one: there the comparison is waited for.
    """
    context, plan = rollout.context, rollout.plan
    rollout.enter("preflight", f"release {plan.version}: digests, disk, units")
    _check(context, plan)
    rollout.digests.begin(context.releases.get(plan.version), context.releases.stamps)
    if rollout.is_swap:
        rollout.digests.finish(context.display)
        rollout.record.digests = rollout.digests.seconds


def rehearse(context: Context, plan: Plan) -> None:
    """Run the same checks without a rollout, and write nothing; raises Refused."""
    context.display.phase("preflight", f"release {plan.version}: digests, disk, units")
    _check(context, plan)
    release = context.releases.get(plan.version)
    if not context.releases.stamps.hold(release):
        with context.display.bytes(f"digests of {plan.version}", release.manifest.size) as advance:
            digests.compare(release, advance)


def require_units(context: Context) -> None:
    """Refuse a host without the units, or with units of another root."""
    for unit in ("glm.socket", "glm@blue.service", "glm@green.service"):
        if context.systemd.state(unit).exists:
            continue
        if (context.host.units / "glm.socket").exists():
            systemctl = " ".join(context.systemd.argv("daemon-reload"))
            raise Refused(f"the service manager does not respond, or has not loaded {unit}", hint=systemctl)
        raise Refused(f"{unit} is not installed", hint="`glmctl install` installs the units")
    root = context.systemd.environment("glm@blue.service").get("GLM_ROOT")
    if root != str(context.host.root):
        raise Refused(
            f"the installed units serve {root}, not {context.host.root}", hint="--root, or `glmctl install --root`"
        )


def _require_listener(context: Context) -> None:
    """Refuse a host on which the slot that is to be started would get no public socket."""
    fault = listener.fault_of(context.host)
    if fault is not None and fault.is_public:
        raise Refused(fault.what, hint=f"{fault.fix}   (no client is served meanwhile)")


def _check(context: Context, plan: Plan) -> None:
    programs.require()
    programs.require_of_units()
    require_units(context)
    if found := outdated(context.host):
        raise Refused(f"{', '.join(found)} were installed by another version of glmctl", hint="`glmctl install`")
    if fault := context.slots.fault:
        live = context.host.root / "live"
        raise Refused(f"{live} {fault}", hint="`glmctl doctor` shows the commands that restore it")
    _require_listener(context)
    hooks.require(context)
    if plan.shares and (context.host.setting("HANDOFF") or "").lower() in _FALSE:
        raise Refused(
            "GLM_HANDOFF is off: connections are not handed over, so the candidate would get no requests",
            hint=f"remove it from {context.host.settings}",
        )
    for path in (context.host.state, context.host.root) if plan.kind != "rollback" else ():
        if shutil.disk_usage(path).free < _JOURNAL_SPACE:
            raise Refused(f"the disk of {path} is full", hint="`glmctl release prune` removes old releases")
    if not os.access(context.host.root, os.W_OK):
        raise Refused(f"{context.host.root} is not writable", hint="run it as root, or with --user")
    digests.require_sizes(context.releases.get(plan.version))
    _check_memory(context, plan)


def _check_memory(context: Context, plan: Plan) -> None:
    if is_warm(context, context.slots.idle, plan.version):
        return
    copy = memory.require(context, plan.version, plan.strategy)
    if plan.strategy == "swap" and (live := context.slots.live):
        _announce_wait(context, plan, live, need.text(copy))


def _announce_wait(context: Context, plan: Plan, live: str, needed: str) -> None:
    """Display how long clients will wait during a swap, and how many can."""
    seconds = Journal(context.host).last_load()
    wait = f"about {seconds:.0f} s, like the last load" if seconds else "until it has loaded"
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    backlog = min(context.systemd.backlog(), somaxconn)
    context.display.line(
        f"{'':10}{plan.version} needs {needed}; {live} is unloaded first, and clients wait {wait}, at most "
        f"{plan.deadline:g} s. Up to {backlog} new connections wait in the socket's backlog, and as many idle ones in "
        f"{live}'s. A client with a shorter timeout fails."
    )
