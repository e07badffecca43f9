"""Clients that attack with whole requests: the others notice nothing, and the worker goes on."""

from __future__ import annotations

import pytest

from service.settings import Settings
from tests.attack.assault import REQUESTS
from tests.attack.bystanders import Report, assert_nothing_is_lost_in_rollouts, assert_nothing_is_noticed
from tests.box import Box

pytestmark = [pytest.mark.alone, pytest.mark.model]

DEFAULTS = Settings(slot="blue")
GROWTH = DEFAULTS.max_bodies + 3 * DEFAULTS.max_open_pixels  # bytes, from the sum in SECURITY.md
STATUSES = {b"200", b"400", b"429"}


@pytest.mark.parametrize("name", REQUESTS)
def test_others_notice_nothing(attacked: Box, idle: Report, name: str) -> None:
    """Beside the attack the others are answered as fast as without, and the worker's memory stays within its bounds."""
    assert assert_nothing_is_noticed(attacked, idle, REQUESTS[name], growth=GROWTH) <= STATUSES


@pytest.mark.long
@pytest.mark.parametrize("name", REQUESTS)
def test_others_lose_nothing_in_rollouts(attacked: Box, name: str) -> None:
    """Nor do the hostile requests move a rollout: it ends as without them, and nobody else loses a request."""
    assert_nothing_is_lost_in_rollouts(attacked, REQUESTS[name])
