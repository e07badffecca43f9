"""Scheduling: which sequences the coming step computes, and in which cache rows.

The list of running sequences is in the order of their rows: first those that decode, then at most one whose prefill
spans several steps. There is never a second one, because a step gives its prefill tokens to the first in the list and
only the remainder to the next. Interactive requests are admitted first; a batch request is preempted if an interactive
one waits, and recomputes its tokens later. Of requests of equal priority that wait, the next row is given to one of the
client that holds the fewest rows with that priority. Rows are not taken back for fairness.

A request is admitted if the cache has room for its prompt, and takes more as its output grows. If there is no more, the
newest of the running requests is preempted, batch requests first: the oldest always runs to its end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from service.engine.pace import Pace
from service.engine.protocol import QueueTimeout, Usage
from service.engine.sequence import Sequence
from service.fairness.shares import Shares

__all__ = ["Cache", "Scheduler", "Step"]


class Size(Protocol):
    """How many requests and tokens a cache holds; see cache.Budget."""

    @property
    def rows(self) -> int: ...
    @property
    def capacity(self) -> int: ...


class Cache(Protocol):
    """What the scheduler asks of a cache."""

    @property
    def budget(self) -> Size:
        """Its size."""

    def fits(self, tokens: int, spare: int = 0) -> bool:
        """Whether there is room for a new row of `tokens` tokens, and for `spare` rows to grow afterwards."""

    def reserve(self, row: int, tokens: int) -> bool:
        """Give a row room for its first `tokens` tokens; return False if there is not enough."""

    def release(self, row: int) -> None:
        """Take back the room of a row."""

    def move(self, source: int, target: int, columns: int) -> None:
        """Make the first `columns` tokens of row `source` those of row `target`, which was released."""

    def occupied(self, max_lengths: Iterable[int]) -> int:
        """Return the tokens reserved for running requests of the given greatest lengths."""


@dataclass(frozen=True)
class Step:
    """One forward pass: a token of each of `decoding`, and the given number of tokens of each of `chunks`."""

    decoding: tuple[Sequence, ...]
    chunks: tuple[tuple[Sequence, int], ...]

    @property
    def sequences(self) -> list[Sequence]:
        """All sequences of the step, in order."""
        return [*self.decoding, *(sequence for sequence, _ in self.chunks)]

    @property
    def sampled(self) -> list[bool]:
        """For each sequence in order, whether a token is sampled for it in this step."""
        return [True] * len(self.decoding) + [sequence.uncomputed == count for sequence, count in self.chunks]

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens of all chunks."""
        return sum(count for _, count in self.chunks)

    @property
    def newest(self) -> Sequence | None:
        """The sequence that arrived last, of those that have not ended."""
        living = [sequence for sequence in self.sequences if not sequence.ended]
        return max(living, key=lambda sequence: sequence.number, default=None)


@dataclass
class Scheduler:
    """Assigns cache rows to sequences.

    `pace` gives the maximum number of prompt tokens in a step, `client_rows` is the part of the rows, from 0 to 1, that
    one address may hold even if no other waits.
    """

    cache: Cache
    pace: Pace
    client_rows: float = 1.0
    rows: list[Sequence] = field(default_factory=list)
    decoding: int = 0
    interactive: deque[Sequence] = field(default_factory=deque)
    batch: deque[Sequence] = field(default_factory=deque)
    steps: int = 0
    step_sequences: int = 0

    @property
    def busy(self) -> bool:
        """Whether any sequence runs or waits."""
        return bool(self.rows or self.interactive or self.batch)

    @property
    def usage(self) -> Usage:
        """See Engine.usage."""
        budget = self.cache.budget
        return Usage(
            len(self.rows),
            len(self.interactive) + len(self.batch),
            self.cache.occupied(sequence.max_length for sequence in list(self.rows)),
            budget.capacity,
            self.steps,
            self.step_sequences,
        )

    def add(self, sequence: Sequence) -> None:
        """Append a sequence to the queue of its priority."""
        self._queue(sequence).append(sequence)

    def schedule(self) -> Step | None:
        """Return the next step, or None if there is nothing to run; drops cancelled and expired sequences first."""
        self._drop_expired()
        self._preempt_for_interactive()
        self._grow()
        decoding = tuple(self.rows[: self.decoding])
        chunks, remaining = [], self.pace.tokens(self.decoding)
        row = self.decoding
        while remaining and (row < len(self.rows) or self._admit()):
            sequence = self.rows[row]
            count = min(remaining, sequence.uncomputed)
            chunks.append((sequence, count))
            remaining -= count
            row += 1
        if not chunks and all(sequence.sampled >= sequence.max_new_tokens for sequence in decoding):
            return None  # they have all their tokens, though the last of them may not be read yet
        return Step(decoding, tuple(chunks))

    def advance(self, step: Step) -> None:
        """Record that the step was computed."""
        self.steps += 1
        self.step_sequences += len(step.decoding) + len(step.chunks)
        for sequence in step.decoding:
            sequence.cached += 1
        for sequence, count in step.chunks:
            self.decoding += sequence.uncomputed == count
            sequence.cached += count

    def reap(self) -> None:
        """Free the rows of the sequences that have ended."""
        for sequence in [running for running in self.rows if running.ended]:
            self._free_row(sequence)

    def remove_all(self) -> list[Sequence]:
        """Remove all running and waiting sequences; return them."""
        removed = [*self.rows, *self.interactive, *self.batch]
        for row in range(len(self.rows)):
            self.cache.release(row)
        self.rows, self.decoding = [], 0
        self.interactive.clear()
        self.batch.clear()
        return removed

    def _queue(self, sequence: Sequence) -> deque[Sequence]:
        return self.interactive if sequence.priority == "interactive" else self.batch

    def _drop_expired(self) -> None:
        """End running sequences past their deadline; drop cancelled ones and those that waited too long."""
        now = time.monotonic()
        for sequence in self.rows:
            if sequence.cancelled:
                sequence.ended = True
            elif now >= sequence.deadline and not sequence.ended:
                sequence.finish("length")
        self.reap()
        for queue in (self.interactive, self.batch):
            for sequence in [
                waiting for waiting in queue if waiting.cancelled or waiting.ended or now >= waiting.queue_deadline
            ]:
                queue.remove(sequence)
                if not (sequence.cancelled or sequence.ended):
                    waited = now - sequence.arrived_at
                    sequence.fail(QueueTimeout(f"no cache row became free within {waited:.0f} s; try again later"))

    def _admit(self) -> bool:
        """Give the next waiting sequence the next row; return False if there is no sequence or no row for it."""
        queue = self.interactive or self.batch
        if not queue or len(self.rows) >= self.cache.budget.rows:
            return False
        shares = Shares(running.client for running in self.rows if running.priority == queue[0].priority)
        sequence = min(queue, key=lambda waiting: shares.of(waiting.client))
        if shares.of(sequence.client)[0] >= self.client_rows * self.cache.budget.rows:
            return False
        row = len(self.rows)
        if sequence.unread:  # preempted in this step; its last token is needed to restore it
            return False
        if not (self.cache.fits(sequence.length, spare=row) and self.cache.reserve(row, sequence.length)):
            return False
        queue.remove(sequence)
        sequence.row = row
        if sequence.waited < 0:
            now = time.monotonic()
            sequence.waited, sequence.deadline = now - sequence.arrived_at, now + sequence.max_seconds
        sequence.queue_deadline = float("inf")
        self.rows.append(sequence)
        return True

    def _preempt_for_interactive(self) -> None:
        """Return batch sequences, newest first, to their queue while interactive ones wait for a row or for room."""
        if not self.interactive:
            return
        missing_rows = len(self.interactive) - (self.cache.budget.rows - len(self.rows))
        prompt_tokens = self.pace.tokens(self.decoding)
        for sequence in self.rows[self.decoding :]:
            if sequence.priority == "batch" and sequence.uncomputed > prompt_tokens:
                self._preempt(sequence)  # its prefill would delay interactive ones by several steps
                missing_rows -= 1
        for sequence in sorted(self.rows[: self.decoding], key=lambda sequence: -sequence.number):
            fits = self.cache.fits(self.interactive[0].length, spare=len(self.rows))
            if sequence.priority == "batch" and (missing_rows > 0 or not fits):
                self._preempt(sequence)
                missing_rows -= 1

    def _grow(self) -> None:
        """Reserve room for the next token of each decoding sequence; preempt the newest while there is not enough."""
        for sequence in self.rows[: self.decoding]:
            while sequence.row >= 0 and not self.cache.reserve(sequence.row, sequence.cached + 1):
                self._preempt(max(self.rows, key=lambda running: (running.priority == "batch", running.number)))

    def _preempt(self, sequence: Sequence) -> None:
        self._free_row(sequence)
        sequence.cached = 0
        self._queue(sequence).appendleft(sequence)

    def _free_row(self, sequence: Sequence) -> None:
        """Free a row and close the gap: with the last decoding row, whose place the row in prefill takes."""
        free = sequence.row
        self.cache.release(free)
        if free < self.decoding:
            self.decoding -= 1
            free = self._move(self.decoding, free)
        self._move(len(self.rows) - 1, free)
        self.rows.pop()
        sequence.row = -1

    def _move(self, source: int, target: int) -> int:
        """Move a sequence to a free row; return the row that is free afterwards."""
        if source != target:
            sequence = self.rows[source]
            self.cache.move(source, target, sequence.cached)
            sequence.row = target
            self.rows[target] = sequence
        return source
