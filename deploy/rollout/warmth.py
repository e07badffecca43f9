"""Which slots could serve at once."""

from __future__ import annotations

from deploy.journal.accounts import current
from deploy.rollout.plan import Tools


def is_warm(tools: Tools, slot: str, version: str) -> bool:
    """Whether `slot` could serve `version` at once."""
    one = current(tools.host, slot)
    return (
        one is not None
        and one.serves
        and one.version == version == tools.slots.version(slot)
        and tools.systemd.state(tools.host.unit(slot)).active == "active"
    )
