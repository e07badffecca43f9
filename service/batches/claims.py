"""Who works on what: every step is one transaction, so that no two processes ever think the same work theirs.

A claim ends in one of four ways: its owner settles it, its owner puts it back, its owner is found dead, or its owner is
found to have forgotten it. What is settled is settled only by who still holds the claim, so no result is ever there
twice.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, and_, exists, or_, select, update

from service.batches import lines
from service.batches.database import Database
from service.batches.owner import owner_lives
from service.batches.tables import ENDED, batches, items

__all__ = ["TRIES", "Chore", "Claim", "Claims", "Key", "Outcome", "Turn"]

TRIES = 5
"""How often a request may end with our failure or take its worker down before it is given up. Being put back by a
worker that leaves, or because the engine is busy, is no such end: the completion window bounds that."""


class Key(NamedTuple):
    """One request of one batch."""

    batch: int
    line: int


@dataclass(frozen=True)
class Claim:
    """A request to work on, and where to read it."""

    key: Key
    custom_id: str
    input_file_id: str
    offset: int
    length: int
    tries: int
    """That ended badly, before this one."""


@dataclass(frozen=True)
class Outcome:
    """How a claim ended: with a result, or with none and back in the queue."""

    key: Key
    state: Literal["completed", "failed", "pending"]
    result: str | None = None
    counts: bool = False
    """As one of the tries, when it goes back."""


@dataclass(frozen=True)
class Chore:
    """A batch that is to be taken over one of its thresholds."""

    batch_id: str
    what: Literal["validate", "finalise"]


@dataclass
class Turn:
    """What there is to do for one worker."""

    idle: bool = False
    """There is no batch that anybody could work on."""
    claims: list[Claim] = field(default_factory=list)
    stop: list[Key] = field(default_factory=list)
    """Requests under way that nobody wants any more."""
    chore: Chore | None = None


class Claims:
    """The work as one owner sees it; everything blocks and raises Unavailable."""

    def __init__(self, database: Database, owner: str) -> None:
        self.database = database
        self.owner = owner

    def take_turn(
        self, outcomes: Collection[Outcome], running: Collection[Key], *, room: int, chore: str | None
    ) -> Turn:
        """Write down what ended, and learn what to do next.

        `running` are the claims still worked on and `chore` the batch in hand; whatever else this owner holds is
        taken from it. At most `room` requests are claimed, of the oldest batch first.
        """
        if not outcomes and not running:
            with self.database.reading() as connection:
                if not connection.execute(select(exists().where(batches.c.status.not_in(ENDED)))).scalar():
                    return Turn(idle=True)
        with self.database.writing() as connection:
            self._settle(connection, outcomes)
            self._release(connection, running, chore)
            turn = Turn(stop=_unwanted(connection, running))
            if chore is None:
                turn.chore = self._take_chore(connection)
            if room:
                turn.claims = self._claim(connection, room)
            return turn

    def put_back(self, outcomes: Collection[Outcome]) -> None:
        """Write down what ended, and give back everything else that this owner holds."""
        with self.database.writing() as connection:
            self._settle(connection, outcomes)
            self._release(connection, (), None)

    def _settle(self, connection: Connection, outcomes: Collection[Outcome]) -> None:
        for outcome in outcomes:
            ended = self._change(
                connection,
                outcome.key,
                state=outcome.state,
                owner=None,
                result=outcome.result,
                tries=items.c.tries + outcome.counts,
            )
            if ended and outcome.state != "pending":
                count = batches.c[outcome.state]
                connection.execute(
                    update(batches).where(batches.c.number == outcome.key.batch).values({count: count + 1})
                )

    def _change(self, connection: Connection, key: Key, **values: Any) -> bool:
        """Change a request that this owner holds; whether it does."""
        mine = items.c.batch == key.batch, items.c.line == key.line, items.c.state == "claimed"
        return connection.execute(update(items).where(*mine, items.c.owner == self.owner).values(values)).rowcount == 1

    def _release(self, connection: Connection, running: Collection[Key], chore: str | None) -> None:
        """Take back what dead owners held, and what this one holds without working on it."""
        held = connection.execute(
            select(items.c.batch, items.c.line).where(items.c.state == "claimed", items.c.owner == self.owner)
        )
        for row in held.all():
            if (key := Key(*row)) not in running:
                self._change(connection, key, state="pending", owner=None)
        connection.execute(
            update(batches).where(batches.c.owner == self.owner, batches.c.id != (chore or "")).values(owner=None)
        )
        owners = select(items.c.owner).where(items.c.state == "claimed").distinct().union(
            select(batches.c.owner).where(batches.c.owner.is_not(None))
        )  # fmt: skip
        for (owner,) in connection.execute(owners).all():
            if owner != self.owner and not owner_lives(owner):
                _bury(connection, owner)

    def _take_chore(self, connection: Connection) -> Chore | None:
        """Take the oldest batch in hand that stands at a threshold."""
        now = int(time.time())
        claimed = exists().where(items.c.batch == batches.c.number, items.c.state == "claimed")
        done = batches.c.completed + batches.c.failed >= batches.c.total
        over = and_(or_(done, batches.c.expires_at <= now), ~claimed)
        row = connection.execute(
            select(batches.c.number, batches.c.id, batches.c.status)
            .where(
                batches.c.owner.is_(None),
                or_(
                    batches.c.status.in_(("validating", "finalizing")),
                    and_(batches.c.status == "cancelling", ~claimed),
                    and_(batches.c.status == "in_progress", over),
                ),
            )
            .order_by(batches.c.number)
            .limit(1)
        ).first()
        if row is None:
            return None
        values: Mapping[str, Any] = {"owner": self.owner}
        if row.status == "in_progress":
            values = {"owner": self.owner, "status": "finalizing", "finalizing_at": now}
        connection.execute(update(batches).where(batches.c.number == row.number).values(values))
        return Chore(row.id, "validate" if row.status == "validating" else "finalise")

    def _claim(self, connection: Connection, room: int) -> list[Claim]:
        claims: list[Claim] = []
        open_batches = (
            select(batches.c.number, batches.c.input_file_id)
            .where(batches.c.status == "in_progress", batches.c.expires_at > int(time.time()))
            .order_by(batches.c.number)
        )
        for batch in connection.execute(open_batches).all():
            # what failed before comes last, so that it holds up nobody
            rows = connection.execute(
                select(items)
                .where(items.c.batch == batch.number, items.c.state == "pending")
                .order_by(items.c.tries, items.c.line)
                .limit(room - len(claims))
            ).all()
            claims += [
                Claim(Key(row.batch, row.line), row.custom_id, batch.input_file_id, row.offset, row.length, row.tries)
                for row in rows
            ]
            if len(claims) == room:
                break
        for claim in claims:
            connection.execute(
                update(items)
                .where(items.c.batch == claim.key.batch, items.c.line == claim.key.line, items.c.state == "pending")
                .values(state="claimed", owner=self.owner)
            )
        return claims


def _bury(connection: Connection, owner: str) -> None:
    """Take back what a dead owner held; a request that took too many workers down is given up."""
    held = items.c.state == "claimed", items.c.owner == owner
    for row in connection.execute(select(items).where(*held, items.c.tries + 1 >= TRIES)).all():
        result = lines.refused(row.custom_id, 500, f"the worker died under this request {TRIES} times", "worker_died")
        this = items.c.batch == row.batch, items.c.line == row.line
        connection.execute(update(items).where(*this).values(state="failed", owner=None, result=result))
        connection.execute(update(batches).where(batches.c.number == row.batch).values(failed=batches.c.failed + 1))
    connection.execute(update(items).where(*held).values(state="pending", owner=None, tries=items.c.tries + 1))
    connection.execute(update(batches).where(batches.c.owner == owner).values(owner=None))


def _unwanted(connection: Connection, running: Collection[Key]) -> list[Key]:
    """Those of the requests under way whose batch is cancelled or expired."""
    if not running:
        return []
    wanted = select(batches.c.number).where(batches.c.status == "in_progress", batches.c.expires_at > int(time.time()))
    numbers = set(connection.execute(wanted).scalars())
    return [key for key in running if key.batch not in numbers]
