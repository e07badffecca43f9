"""Which slots could serve at once."""

from __future__ import annotations

from deploy.journal.accounts import current
from deploy.rollout.plan import Context


def is_warm(context: Context, slot: str, version: str) -> bool:
    """Whether `slot` could serve `version` at once."""
    one = current(context.host, slot)
    return (
        one is not None
        and one.serves
        and one.version == version == context.slots.version(slot)
        and context.systemd.state(context.host.unit(slot)).active == "active"
    )
