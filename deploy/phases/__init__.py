"""The phases of a rollout. Each is journalled before it acts, and says what it does while it takes long."""

from deploy.phases.candidate import prepare, start, undo, verify
from deploy.phases.leaving import retire, see_off
from deploy.phases.room import revive, vacate
from deploy.phases.shares import canary
from deploy.phases.switching import cutover, rollback, switch_back
from deploy.phases.watching import bake
from deploy.preflight import preflight

__all__ = [
    "bake",
    "canary",
    "cutover",
    "preflight",
    "prepare",
    "retire",
    "revive",
    "rollback",
    "see_off",
    "start",
    "switch_back",
    "undo",
    "vacate",
    "verify",
]
