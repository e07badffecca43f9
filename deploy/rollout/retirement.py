"""The end of a slot that was kept warm."""

from __future__ import annotations

from deploy.errors import Refused
from deploy.journal.accounts import current
from deploy.journal.journal import Journal
from deploy.rollout.phases import see_off
from deploy.rollout.plan import Context


def retire(context: Context, slot: str, version: str | None, drain: float) -> str | None:
    """See `slot` off: what it began is finished, its memory freed (WINCH), its unit stopped.

    Returns the version that it served, None when it served nothing (or another than `version`). Raises Refused when it
    is live, Locked, and DrainCut when the deadline cut requests.
    """
    with Journal(context.host).lock():
        if slot == context.slots.live:
            raise Refused(f"{slot} is live", hint="`glmctl status` shows both slots")
        one = current(context.host, slot)
        if one is None or version not in {None, one.version}:
            return None
        context.timers.cancel_retirements()
        see_off(context, slot, drain)
        return one.version
