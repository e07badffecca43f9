"""A manager that executes itself anew, as in an upgrade of systemd, at any moment of a rollout."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.box import Box


@contextmanager
def reexecs(box: Box) -> Iterator[None]:
    """Make the manager execute itself anew, again and again; several times in each phase of a rollout."""
    ended = threading.Event()

    def again() -> None:
        while not ended.wait(0.2):
            box.systemctl("daemon-reexec")

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_rollouts_end_well_whenever_the_manager_executes_itself_anew(box: Box) -> None:
    """No command to the manager that was cut off fails a rollout, or makes it take a running unit for a stopped one."""
    with reexecs(box):
        for version in ("1.1.0", "1.0.0"):
            found = box.json("deploy", version, "--bake", "1")
            assert (found["outcome"], found["receipt"]["lost"]) == ("done", 0)
        box.json("deploy", "1.1.0", "--bake", "0", "--keep-warm", "60s")
        box.json("rollback")
    status = box.json("status")
    assert status["slots"][status["live"]]["version"] == "1.0.0"
