"""Claims: the assignment of requests and batches to workers. Each step is one transaction.

A claim ends when its owner settles it, when its owner releases it, when its owner is found dead, or when its owner no
longer lists it as running. Only the current holder can settle a claim, so no result is stored twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, and_, exists, func, or_, select, update

from service.batches import lines
from service.batches.database import Database
from service.batches.owner import owner_alive
from service.batches.tables import ENDED, batches, items

__all__ = ["MAX_DEATHS", "MAX_TRIES", "Assignment", "Claim", "Claims", "Key", "Outcome", "Transition"]

MAX_TRIES = 5
"""Tries that may end with a server error before a request is given up. A release by a worker whose gate closes, or
because the engine is busy, does not count: the completion window bounds those."""

MAX_DEATHS = 3
"""Deaths of its worker after which a request is given up. After the first it is processed alone, so that another one
that killed the worker cannot fail it."""


class Key(NamedTuple):
    """One request of one batch."""

    batch: int
    line: int


@dataclass(frozen=True)
class Claim:
    """A claimed request, and its position in the input file (offset and length in bytes)."""

    key: Key
    custom_id: str
    input_file_id: str
    offset: int
    length: int
    tries: int
    """Tries before this one that ended with a server error."""
    deaths: int
    """Those that ended with the death of the worker."""


@dataclass(frozen=True)
class Outcome:
    """The end of a claim: a result, or a return to the queue (`pending`)."""

    key: Key
    state: Literal["completed", "failed", "pending"]
    result: str | None = None
    counts_as_try: bool = False
    """With `pending`: whether this was a failed try."""


@dataclass(frozen=True)
class Transition:
    """A batch that this owner is to move to its next status."""

    batch_id: str
    kind: Literal["validate", "finalise"]


@dataclass
class Assignment:
    """The result of one poll: the work for one worker."""

    idle: bool = False
    """No batch is unfinished."""
    claims: list[Claim] = field(default_factory=list)
    cancel: list[Key] = field(default_factory=list)
    """Running requests whose batch was cancelled or has expired."""
    transition: Transition | None = None


class Claims:
    """The claims of one owner; every method blocks and raises Unavailable."""

    def __init__(self, database: Database, owner: str) -> None:
        self.database = database
        self.owner = owner

    def poll(
        self, outcomes: Collection[Outcome], running: Collection[Key], *, capacity: int, transition: str | None
    ) -> Assignment:
        """Store outcomes and return the next work.

        `running` are the claims in progress and `transition` the id of the batch in transition; all other claims of
        this owner are released. At most `capacity` requests are claimed, of API keys in turn, from the oldest batch of
        each first. One whose worker died is claimed last in its batch, and alone: it may have killed the worker, and
        the others with it.
        """
        if not outcomes and not running:
            with self.database.reading() as connection:
                if not connection.execute(select(exists().where(batches.c.status.not_in(ENDED)))).scalar():
                    return Assignment(idle=True)
        with self.database.writing() as connection:
            self._settle(connection, outcomes)
            self._release_unlisted(connection, running, transition)
            self._reclaim_from_dead(connection)
            assignment = Assignment(cancel=_to_cancel(connection, running))
            if transition is None:
                assignment.transition = self._next_transition(connection)
            if capacity:
                assignment.claims = self._claim(connection, running, capacity)
            return assignment

    def release(self, outcomes: Collection[Outcome]) -> None:
        """Store outcomes and release all other claims of this owner."""
        with self.database.writing() as connection:
            self._settle(connection, outcomes)
            self._release_unlisted(connection, (), None)

    def _settle(self, connection: Connection, outcomes: Collection[Outcome]) -> None:
        for outcome in outcomes:
            settled = self._update_held(
                connection,
                outcome.key,
                state=outcome.state,
                owner=None,
                result=outcome.result,
                tries=items.c.tries + outcome.counts_as_try,
            )
            if settled and outcome.state != "pending":
                count = batches.c[outcome.state]
                connection.execute(
                    update(batches).where(batches.c.number == outcome.key.batch).values({count: count + 1})
                )

    def _update_held(self, connection: Connection, key: Key, **values: Any) -> bool:
        """Update a request if this owner holds its claim; return whether it does."""
        held = items.c.batch == key.batch, items.c.line == key.line, items.c.state == "claimed"
        return connection.execute(update(items).where(*held, items.c.owner == self.owner).values(values)).rowcount == 1

    def _release_unlisted(self, connection: Connection, running: Collection[Key], transition: str | None) -> None:
        """Release this owner's claims that are not in progress, such as those of a poll whose reply was lost."""
        held = connection.execute(
            select(items.c.batch, items.c.line).where(items.c.state == "claimed", items.c.owner == self.owner)
        )
        for row in held.all():
            if (key := Key(*row)) not in running:
                self._update_held(connection, key, state="pending", owner=None)
        connection.execute(
            update(batches).where(batches.c.owner == self.owner, batches.c.id != (transition or "")).values(owner=None)
        )

    def _reclaim_from_dead(self, connection: Connection) -> None:
        """Reclaim the claims of all owners that are no longer running."""
        owners = select(items.c.owner).where(items.c.state == "claimed").distinct().union(
            select(batches.c.owner).where(batches.c.owner.is_not(None))
        )  # fmt: skip
        for (owner,) in connection.execute(owners).all():
            if owner != self.owner and not owner_alive(owner):
                _reclaim(connection, owner)

    def _next_transition(self, connection: Connection) -> Transition | None:
        """Claim the oldest batch that is ready for validation or finalisation."""
        now = int(time.time())
        claimed = exists().where(items.c.batch == batches.c.number, items.c.state == "claimed")
        done = batches.c.completed + batches.c.failed >= batches.c.total
        finished = and_(or_(done, batches.c.expires_at <= now), ~claimed)
        row = connection.execute(
            select(batches.c.number, batches.c.id, batches.c.status)
            .where(
                batches.c.owner.is_(None),
                or_(
                    batches.c.status.in_(("validating", "finalizing")),
                    and_(batches.c.status == "cancelling", ~claimed),
                    and_(batches.c.status == "in_progress", finished),
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
        return Transition(row.id, "validate" if row.status == "validating" else "finalise")

    def _claim(self, connection: Connection, running: Collection[Key], capacity: int) -> list[Claim]:
        """Claim requests, each of the oldest batch of the API key that has the fewest claimed, by any worker."""
        if any(_deaths(connection, key) for key in running):
            return []
        of_keys = _claimed(connection)
        open_batches = list(
            connection.execute(
                select(batches.c.number, batches.c.input_file_id, batches.c.key_hash)
                .where(batches.c.status == "in_progress", batches.c.expires_at > int(time.time()))
                .order_by(batches.c.number)
            )
        )
        claims: list[Claim] = []
        while open_batches and len(claims) < capacity:
            batch = min(open_batches, key=lambda one: of_keys[one.key_hash])
            row = connection.execute(
                select(items)
                .where(items.c.batch == batch.number, items.c.state == "pending")
                .order_by(items.c.deaths, items.c.tries, items.c.line)
                .limit(1)
            ).first()
            if row is None:
                open_batches.remove(batch)
                continue
            if row.deaths and any(claim.key.batch == row.batch for claim in claims):
                open_batches.remove(batch)
                continue
            if row.deaths and (running or claims):
                break  # what follows waits too, or this request would wait for ever
            this = items.c.batch == row.batch, items.c.line == row.line
            connection.execute(update(items).where(*this).values(state="claimed", owner=self.owner))
            of_keys[batch.key_hash] += 1
            key = Key(row.batch, row.line)
            claims.append(Claim(key, row.custom_id, batch.input_file_id, row.offset, row.length, row.tries, row.deaths))
            if row.deaths:
                break
        return claims


def _reclaim(connection: Connection, owner: str) -> None:
    """Return the claims of a dead owner to the queue; a request at MAX_DEATHS fails."""
    held = items.c.state == "claimed", items.c.owner == owner
    for row in connection.execute(select(items).where(*held, items.c.deaths + 1 >= MAX_DEATHS)).all():
        message = f"the worker died while processing this request, {MAX_DEATHS} times"
        result = lines.error_line(row.custom_id, 500, message, "worker_died")
        this = items.c.batch == row.batch, items.c.line == row.line
        connection.execute(update(items).where(*this).values(state="failed", owner=None, result=result))
        connection.execute(update(batches).where(batches.c.number == row.batch).values(failed=batches.c.failed + 1))
    connection.execute(update(items).where(*held).values(state="pending", owner=None, deaths=items.c.deaths + 1))
    connection.execute(update(batches).where(batches.c.owner == owner).values(owner=None))


def _claimed(connection: Connection) -> Counter[str | None]:
    """Return the number of claimed requests of each API key."""
    claimed = (
        select(batches.c.key_hash, func.count())
        .join(items, items.c.batch == batches.c.number)
        .where(items.c.state == "claimed")
        .group_by(batches.c.key_hash)
    )
    of_keys: Counter[str | None] = Counter()
    for key, count in connection.execute(claimed):
        of_keys[key] = count
    return of_keys


def _deaths(connection: Connection, key: Key) -> int:
    """Return how often a request's worker died before."""
    found = select(items.c.deaths).where(items.c.batch == key.batch, items.c.line == key.line)
    return connection.execute(found).scalar() or 0


def _to_cancel(connection: Connection, running: Collection[Key]) -> list[Key]:
    """Return the running requests whose batch was cancelled or has expired."""
    if not running:
        return []
    active = select(batches.c.number).where(batches.c.status == "in_progress", batches.c.expires_at > int(time.time()))
    numbers = set(connection.execute(active).scalars())
    return [key for key in running if key.batch not in numbers]
