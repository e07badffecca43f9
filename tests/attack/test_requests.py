"""Clients that attack with whole requests: the others notice nothing, and the worker goes on."""

from __future__ import annotations

import pytest

from service.settings import Settings
from tests.attack.assault import REQUESTS
from tests.attack.bystanders import (
    Bystanders,
    Report,
    assert_nothing_is_lost_in_rollouts,
    assert_nothing_is_noticed,
)
from tests.box import Box

pytestmark = [pytest.mark.alone, pytest.mark.model]

DEFAULTS = Settings(slot="blue")
PREPARED = 4 * DEFAULTS.max_pixels + 50 * 9_633_792  # bytes for one image, of which the processor keeps so many pixels
GROWTH = DEFAULTS.max_bodies + 3 * DEFAULTS.max_open_pixels + PREPARED  # bytes, from the sum in SECURITY.md
WORK = {"many pixels"}  # what the engine computes
ANSWERED = WORK | {"metrics", "openapi", "files"}
SHORT = {"numbers, 20 MB", "depth", "text", "tools", "too many pixels", "openapi", "files", "parts", "schema: patterns"}
STATUSES = {b"200", b"400", b"429"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.long) for name in REQUESTS]
)
def test_others_notice_nothing(attacked: Box, clients: Bystanders, idle: Report, name: str) -> None:
    """Beside the attack the others are answered as fast as without, and the worker's memory stays within its bounds."""
    statuses = assert_nothing_is_noticed(attacked, clients, idle, REQUESTS[name], growth=GROWTH, is_work=name in WORK)
    assert statuses <= STATUSES
    assert (b"200" in statuses) is (name in ANSWERED)


@pytest.mark.long
@pytest.mark.parametrize("name", REQUESTS)
def test_others_lose_nothing_in_rollouts(attacked: Box, name: str) -> None:
    """Nor do the hostile requests move a rollout: it ends as without them, and nobody else loses a request."""
    assert_nothing_is_lost_in_rollouts(attacked, REQUESTS[name], is_work=name in WORK)
