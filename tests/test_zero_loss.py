"""Zero loss: no request of the mixed load is lost in cutovers and reloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.loadtest import Report
from tests.box import Box

pytestmark = [pytest.mark.model, pytest.mark.alone]

LONG = pytest.mark.long
SWITCHES_BETWEEN = 6


def assert_nothing_lost(box: Box, report: Report) -> None:
    """Assert that each class of clients sent requests, lost none, and met no close between requests."""
    assert report.lost == 0, f"{report.losses}\n{box.log()}"
    classes = report.by_class.values()
    assert all(clients.announced_closes == 0 and clients.idle_closes == 0 for clients in classes)
    assert all(clients.sent > 0 for clients in classes)


def assert_receipts_add_up(box: Box) -> None:
    """Assert for every rollout and generation: accepted = completed + failed + client-aborted + in flight."""
    for record in box.json("history")["rollouts"]:
        receipt = record["receipt"]
        assert receipt["adds_up"], record
        assert receipt["lost"] == 0, record
        for line in [receipt, *receipt["lines"]]:
            ended = line["completed"] + line["failed"] + line["client_aborted"] + line["in_flight"]
            assert line["accepted"] == ended, record


@pytest.mark.parametrize(
    ("workers", "deploys"),
    [(2, 1), pytest.param(1, 6, marks=LONG), pytest.param(2, 6, marks=LONG)],
)
def test_cutovers_lose_nothing(stocked_box: Box, tmp_path: Path, workers: int, deploys: int) -> None:
    """Deploys and rollbacks in both directions lose no request of any class of clients."""
    box = stocked_box
    box.configure(threads=1, workers=workers)
    box.glmctl("deploy", "1.0.0")
    cutovers = 0
    with box.load(tmp_path) as load:
        for number in range(deploys):
            with box.baking(["1.1.0", "1.0.0"][number % 2]):
                cutovers += 1
                for _ in range(SWITCHES_BETWEEN):
                    box.glmctl("rollback")
                    cutovers += 1
            box.systemctl("stop", f"glm@{box.slots.idle}.service")  # so that the next deploy is a full one
        report = load.stop()
    assert cutovers == deploys * (1 + SWITCHES_BETWEEN)
    assert_nothing_lost(box, report)
    assert_receipts_add_up(box)
    assert set(report.by_version) == {"1.0.0", "1.1.0"}


@pytest.mark.parametrize(
    ("workers", "reloads"),
    [(1, 2), pytest.param(1, 10, marks=LONG), pytest.param(2, 10, marks=LONG)],
)
def test_reloads_in_place_lose_nothing(stocked_box: Box, tmp_path: Path, workers: int, reloads: int) -> None:
    """Repeated reloads lose no request of any class of clients; one master is left, and `systemctl stop` succeeds."""
    box = stocked_box
    box.configure(threads=1, workers=workers)
    box.glmctl("deploy", "1.0.0")
    with box.load(tmp_path) as load:
        for number in range(reloads):
            record = box.json("reload", ["1.0.0", "1.1.0"][number % 2])
            assert record["outcome"] == "done"
        report = load.stop()
    assert_nothing_lost(box, report)
    assert_receipts_add_up(box)
    assert box.generation("blue").generation == reloads + 1
    assert len([generation for generation in box.generations("blue") if generation.is_alive]) == 1
    box.systemctl("stop", "glm@blue.service")
    assert box.show("glm@blue.service", "ActiveState") == "inactive"
    assert box.show("glm@blue.service", "Result") == "success"


def test_load_reports_losses_without_handoff(stocked_box: Box, tmp_path: Path) -> None:
    """With handoff switched off, idle connections are closed, and the same load reports lost requests."""
    box = stocked_box
    box.configure(threads=1, handoff="false")
    box.glmctl("deploy", "1.0.0")
    with box.load(tmp_path) as load:
        with box.baking("1.1.0"):
            for _ in range(4):
                box.glmctl("rollback")
        report = load.stop()
    assert report.lost > 0
