"""A host that is attacked, and what well-behaved clients notice without an attack."""

from __future__ import annotations

import sqlite3
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
        _store_files(box, 2000)
        yield box


def _store_files(box: Box, count: int) -> None:
    """Store files of all clients without a key."""
    box.get("/v1/files")  # makes the database
    [path] = box.sandbox.directory.rglob("batches.db")
    expires_at = int(time.time()) + 86_400
    rows = [(f"file-{number}", 1, 0, expires_at, "in.jsonl", "batch", "") for number in range(count)]
    with closing(sqlite3.connect(path)) as database, database:
        columns = "id, bytes, created_at, expires_at, filename, purpose, key_hash"
        database.executemany(f"INSERT INTO files ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


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
