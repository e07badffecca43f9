"""The targets by name."""

from __future__ import annotations

from tests.fuzz.chats import IMAGES, REQUESTS, SCHEMAS
from tests.fuzz.heads import HEADS
from tests.fuzz.state_files import STATE_FILES
from tests.fuzz.target import Target

__all__ = ["TARGETS"]

TARGETS: dict[str, Target] = {target.name: target for target in (HEADS, REQUESTS, SCHEMAS, IMAGES, STATE_FILES)}
