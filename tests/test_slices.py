"""Many connections are moved in slices: others are served between two, each is tried, and nothing spins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from service.handover import slices
from service.handover.fd_passing import Outcome
from service.handover.slices import Slices
from service.routing.canary import Side

pytestmark = pytest.mark.anyio

SENT, TRY_AGAIN, NO_RECEIVER = Outcome.SENT, Outcome.TRY_AGAIN, Outcome.NO_RECEIVER


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Movable:
    """A connection whose attempts end as `outcomes` say, the last of them for ever."""

    outcomes: list[Outcome | None]
    side: Side = "live"
    public: bool = True
    tried: int = 0

    def move(self) -> Outcome | None:
        self.tried += 1
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]

    def shutdown(self) -> None:
        raise NotImplementedError

    cut = shutdown


@dataclass
class Mover:
    """Moves the connections, as a server does at each tick and whenever it is told to go on."""

    left: list[Movable]
    wakes: int = 0
    sent: list[Movable] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._slices = Slices(self._move, self._go_on)

    def _move(self, connection: object) -> Outcome | None:
        assert isinstance(connection, Movable)
        outcome = connection.move()
        if outcome is SENT:
            self.left.remove(connection)
            self.sent.append(connection)
        return outcome

    def _connections(self) -> Iterator[Movable]:
        yield from list(self.left)

    def _go_on(self) -> None:
        self.wakes += 1
        self.tick()

    def tick(self) -> None:
        self._slices.each(self._connections)

    async def settle(self) -> None:
        """Run the event loop until nothing more is due; fails if that does not end."""
        for _ in range(1_000):
            before = self.wakes
            await asyncio.sleep(0)
            await asyncio.sleep(2 * slices._FULL_PAUSE if self.wakes == before else 0)
            if self.wakes == before:
                return
        raise AssertionError("it spins")


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection in each slice."""
    monkeypatch.setattr(slices, "_SLICE", 0.0)


async def test_a_slice_ends_in_time_and_the_next_goes_on() -> None:
    """Each connection is moved once, in order, with the event loop's other work between."""
    mover = Mover([Movable([SENT]) for _ in range(50)])
    all_of_them = list(mover.left)
    mover.tick()
    assert len(mover.sent) == 1
    await mover.settle()
    assert mover.sent == all_of_them
    assert mover.wakes == 50


@pytest.mark.parametrize("outcome", [None, NO_RECEIVER])
async def test_what_cannot_be_moved_is_tried_once_a_tick(outcome: Outcome | None) -> None:
    """It does not hold up what is behind it, and costs no time before the next tick."""
    stuck = [Movable([outcome]) for _ in range(30)]
    mover = Mover([*stuck, Movable([SENT])])
    mover.tick()
    await mover.settle()
    assert len(mover.sent) == 1
    assert {one.tried for one in stuck} == {1}
    mover.tick()
    await mover.settle()
    assert {one.tried for one in stuck} == {2}


async def test_a_full_receiver_gets_a_pause_and_does_not_hold_up_the_other() -> None:
    """It is tried once in a pass; while it takes some, the next pass is not long in coming."""
    full = [Movable([TRY_AGAIN, SENT], "candidate"), *(Movable([SENT], "candidate") for _ in range(5))]
    others = [Movable([SENT]) for _ in range(5)]
    mover = Mover([*full, *others])
    mover.tick()
    await mover.settle()
    assert mover.sent == [*others, *full]


async def test_a_receiver_that_takes_nothing_is_tried_once_a_tick() -> None:
    """Its backlog is full, because it hangs."""
    mover = Mover([Movable([TRY_AGAIN]) for _ in range(20)])
    mover.tick()
    await mover.settle()
    assert sum(one.tried for one in mover.left) == 1


async def test_a_connection_that_came_meanwhile_is_in_the_next_pass() -> None:
    """A pass ends."""
    mover = Mover([Movable([SENT]) for _ in range(3)])
    mover.tick()
    mover.left.append(Movable([SENT]))
    await mover.settle()
    assert len(mover.left) == 1
    mover.tick()
    assert not mover.left
