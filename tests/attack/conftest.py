"""A host that is attacked, and what well-behaved clients notice without an attack."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.attack.bystanders import Bystanders, Report
from tests.box import Box, empty_host
from tests.conftest import engine_of

IDLE = 3.0  # seconds


@pytest.fixture(scope="module")
def attacked(checkpoints: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Box]:
    """A host with one live slot, and with few connections for one address."""
    with empty_host(engine_of(request)) as box:
        box.configure(threads=1, max_connections=300, max_connections_per_address=200, keep_alive=600)
        box.stock(checkpoints)
        box.glmctl("deploy", "1.0.0")
        yield box


@pytest.fixture(scope="module")
def clients(attacked: Box) -> Iterator[Bystanders]:
    """Well-behaved clients of the host."""
    with closing(Bystanders(attacked)) as found:
        yield found


@pytest.fixture(scope="module")
def idle(clients: Bystanders) -> Report:
    """What the clients notice without an attack."""
    time.sleep(1)
    with clients.noticing() as report:
        time.sleep(IDLE)
    return report
