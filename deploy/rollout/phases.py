"""The phases of a rollout. Each is journalled before it acts, and says what it does while it takes long."""

from deploy.rollout.bake import bake
from deploy.rollout.canary import canary
from deploy.rollout.candidate import prepare, start, undo, verify
from deploy.rollout.cutover import cutover, rollback, switch_back
from deploy.rollout.preflight import preflight
from deploy.rollout.retire import retire, see_off
from deploy.rollout.swap import revive, vacate

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
