"""What the rollout page knows of a host: it reads glmctl once for all sessions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.controller_fixtures import FakeController, record, status
from tests.page_fixtures import wait_until
from ui import status as module
from ui.status import TICK, WINDOW, Recent, StatusReader, controller

CHANGES = st.lists(st.tuples(st.floats(0, 2000), st.none() | st.integers(0, 100)), max_size=20)


@pytest.fixture
def fake(tmp_path: Path) -> FakeController:
    return FakeController(tmp_path)


@pytest.fixture
def reader(fake: FakeController) -> Iterator[StatusReader]:
    reader = StatusReader([str(fake.path)])
    yield reader
    reader.close()


@given(changes=CHANGES, now=st.floats(0, 2000))
def test_a_document_holds_until_the_next(changes: list[tuple[float, int | None]], now: float) -> None:
    """Each tick of the last ten minutes has the document that was newest then, and none where it was unknown."""
    recent = Recent()
    past = sorted(((at, share) for at, share in changes if at <= now), key=lambda change: change[0])
    for at, share in past:
        recent.update(None if share is None else status(canary=share), at)
    shares = {point.at: point.share for point in recent.points(now) if point.slot == "green"}
    first = past[0][0] if past else now
    expected = {}
    tick = 0.0
    while tick <= now:
        held = [share for at, share in past if at < tick]
        if tick > first and tick >= now - WINDOW and held and held[-1] is not None:
            expected[tick] = held[-1]
        tick += TICK
    assert shares == expected
    assert [point.at for point in recent.points(now)] == [at for at in sorted(shares) for _ in ("blue", "green")]


def test_all_sessions_share_one_glmctl(fake: FakeController, reader: StatusReader) -> None:
    """However many pages ask, glmctl is started once, and its newest document is what they get."""
    for share in (10, 50):
        fake.publish(status(canary=share))
        wait_until(lambda share=share: [reader.status() for _ in range(20)][-1].document == status(canary=share))  # type: ignore[misc]
    assert fake.calls == ["status", "history"]


def test_the_history_is_read_when_a_rollout_begins_or_ends(fake: FakeController, reader: StatusReader) -> None:
    """Each change of phase, share or count leaves it as it is."""
    running, done = record(2, outcome=None), record(2)
    fake.set_history(record(1), running)
    fake.publish(status(running))
    wait_until(lambda: reader.status().rollouts == (record(1), running))
    for share in (10, 50):
        fake.publish(status(running, canary=share))
    wait_until(lambda: reader.status().document == status(running, canary=50))
    fake.set_history(record(1), done)
    fake.publish(status(done))
    wait_until(lambda: reader.status().rollouts == (record(1), done))
    assert fake.calls == ["status", "history", "history"]


def test_a_failed_glmctl_is_told_and_started_again(
    fake: FakeController, reader: StatusReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message is kept until it works again; the plots have a gap meanwhile."""
    monkeypatch.setattr(module, "_PAUSE", 0.05)
    fake.break_with("error: systemd is not running")
    wait_until(lambda: reader.status().error == "error: systemd is not running")
    assert reader.status().document is None
    fake.publish(status())
    fake.mend()
    wait_until(lambda: reader.status().document == status())
    assert reader.status().error is None


def test_a_missing_glmctl_is_told(tmp_path: Path) -> None:
    """As for a page that is installed without it."""
    reader = StatusReader([str(tmp_path / "glmctl")])
    wait_until(lambda: "No such file" in (reader.status().error or ""))
    reader.close()


def test_glmctl_ends_when_nobody_looks(
    fake: FakeController, reader: StatusReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is started again by the next page."""
    fake.publish(status())
    wait_until(lambda: reader.status().document is not None)
    thread = reader._thread
    assert thread is not None
    monkeypatch.setattr(module, "_POLL", 0.02)
    monkeypatch.setattr(module, "WINDOW", 0.0)
    wait_until(lambda: not thread.is_alive())
    monkeypatch.undo()
    assert reader.status().document is None
    wait_until(lambda: reader.status().document is not None)
    assert fake.calls == ["status", "history", "status"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("/opt/glmctl --user --root /srv", ["/opt/glmctl", "--user", "--root", "/srv"]), ("", None)],
)
def test_the_command_is_that_of_the_unit(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: list[str] | None
) -> None:
    """GLM_CONTROLLER has it; without it the glmctl of this environment is run."""
    monkeypatch.setenv("GLM_CONTROLLER", given)
    found = controller()
    assert found == expected or (expected is None and found[0].endswith("/bin/glmctl") and len(found) == 1)
