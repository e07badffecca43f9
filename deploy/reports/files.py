"""The files of a host that the programs share or that the operator writes: which of them cannot be read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.errors import Refused
from deploy.host import Host
from deploy.journal.journal import Journal
from deploy.policy import Policy
from deploy.rollout.plan import Context
from service.contract import damage, keys_file, regular_file
from service.contract.generations import current
from service.contract.slots import SLOTS

__all__ = ["Finding", "Kind", "examine"]

Kind = Literal[
    "units", "socket", "public-socket", "slot-link", "live-link", "no-live-slot", "not-ready", "open-gate",
    "interrupted", "state-file", "record", "policy", "settings", "keys", "keys-mode", "disk", "devices",
]  # fmt: skip
"""What was checked. docs/runbook.md has a section for each, named `doctor: KIND`."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    kind: Kind
    good: bool
    what: str
    """The fact, in one sentence."""
    fix: str | None = None
    """Commands that repair it; None if it is good or no command is known."""


def examine(context: Context) -> list[Finding]:
    """Return a finding for each file that is damaged, with the commands that remove or restore it."""
    host = context.host
    findings = [*_links(context)]
    for found in damage.damaged(host.root, host.runtime):
        if found.path.parent == host.root:
            fix = f"{_set_aside(found.path)}; glmctl deploy VERSION"
        elif found.path.suffix == ".samples" and _is_of_running_worker(context, found.path):
            fix = "glmctl reload"  # the worker goes on writing to the file that it has mapped
        else:
            fix = f"rm -rf {shlex.quote(str(found.path))}"
        findings.append(Finding("state-file", good=False, what=f"{found.path} is ignored: {found.reason}", fix=fix))
    for path, error in Journal(host).damaged():
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        findings.append(Finding("record", good=False, what=f"{path} is ignored: {reason}", fix=_set_aside(path)))
    findings += _configuration(host)
    findings += _keys(Path(host.setting("KEYS") or host.keys))
    return findings or [Finding("state-file", good=True, what="state files, journal and policy can be read")]


def _links(context: Context) -> Iterator[Finding]:
    if fault := context.slots.fault:
        path = context.host.root / "live"
        link = f"ln -s {_last_live(context)} {shlex.quote(str(path))}"
        yield Finding(
            "live-link", good=False, what=f"{path} {fault}, so that no slot is live", fix=f"{_set_aside(path)}; {link}"
        )


def _configuration(host: Host) -> Iterator[Finding]:
    try:
        Policy.of(host)
    except Refused as error:
        if not isinstance(error.__cause__, PermissionError):
            yield Finding("policy", good=False, what=str(error), fix=f"edit or remove {host.policy}")
    try:
        regular_file.read(host.settings, follow=True)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except OSError as error:
        what = f"{host.settings}, the settings of the service, cannot be read: {error.strerror}"
        yield Finding("settings", good=False, what=what, fix=f"edit or remove {host.settings}")


def _keys(path: Path) -> Iterator[Finding]:
    """Yield what is wrong with the file of API keys; its own service refuses to start with a damaged one."""
    try:
        keys_file.parse(regular_file.read(path, follow=True))
        everybody = path.stat().st_mode & 0o007
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        yield Finding("keys", good=False, what=f"the API keys {path} cannot be used: {reason}", fix=f"edit {path}")
        return
    if everybody:
        what = f"every user of this host can read or write the API keys {path}"
        yield Finding("keys-mode", good=False, what=what, fix=f"chmod o= {shlex.quote(str(path))}")


def _last_live(context: Context) -> str:
    """Return the slot that was live before the link was damaged: the last rollout's, else one that serves."""
    for record in Journal(context.host).newest():
        if record.outcome == "done":
            return record.slot
    serving = (one for slot in SLOTS if (one := current(context.host.runtime, slot)) and one.is_serving)
    return next((one.slot for one in serving), "SLOT")


def _set_aside(path: Path) -> str:
    return f"mv {shlex.quote(str(path))} {shlex.quote(str(path))}.damaged"


def _is_of_running_worker(context: Context, path: Path) -> bool:
    return any(
        str(worker.pid) == path.stem for slot in SLOTS if (one := current(context.host.runtime, slot))
        for worker in one.alive_workers
    )  # fmt: skip
