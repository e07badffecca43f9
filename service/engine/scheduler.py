"""Who runs in the coming step, and in which row.

The running sequences stand in the order of their rows: first those that decode, then at most one whose prompt is taken
in over several steps. Nobody else can be half way: a step gives its room for prompt tokens to the first in line, and
only what that leaves to the next. Interactive requests go first; a batch request gives its row up when one is waiting,
and takes its own tokens in again later.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from service.engine.cache import SlotCache
from service.engine.protocol import Usage, WaitedTooLong
from service.engine.sequence import Sequence

__all__ = ["Scheduler", "Step"]


@dataclass(frozen=True)
class Step:
    """What one forward pass takes in: a token of each of `decoding`, so many tokens of each of `chunks`."""

    decoding: tuple[Sequence, ...]
    chunks: tuple[tuple[Sequence, int], ...]

    @property
    def speaking(self) -> list[bool]:
        """For each sequence of the step in order: whether it says its next token."""
        return [True] * len(self.decoding) + [sequence.missing == count for sequence, count in self.chunks]

    @property
    def newest(self) -> Sequence:
        """The sequence that came last: the likeliest to be at fault when the step fails."""
        return max([*self.decoding, *(sequence for sequence, _ in self.chunks)], key=lambda one: one.number)


@dataclass
class Scheduler:
    """Gives rows of the cache to sequences. `chunk` is how many prompt tokens a step takes in at most."""

    cache: SlotCache
    chunk: int
    rows: list[Sequence] = field(default_factory=list)
    decoding: int = 0
    interactive: deque[Sequence] = field(default_factory=deque)
    batch: deque[Sequence] = field(default_factory=deque)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.rows or self.interactive or self.batch)

    @property
    def usage(self) -> Usage:
        """See Engine.usage."""
        budget = self.cache.budget
        return Usage(
            len(self.rows),
            len(self.interactive) + len(self.batch),
            sum(sequence.most for sequence in list(self.rows)),
            budget.rows * budget.columns,
        )

    def add(self, sequence: Sequence) -> None:
        """Let it wait for a row."""
        self._queue(sequence).append(sequence)

    def schedule(self) -> Step | None:
        """Decide the coming step; None when there is nothing to run. Who left, or waited for too long, is dropped."""
        self._sweep()
        self._make_room()
        decoding = tuple(self.rows[: self.decoding])
        chunks, room = [], self.chunk
        place = self.decoding
        while room and (place < len(self.rows) or self._admit()):
            sequence = self.rows[place]
            count = min(room, sequence.missing)
            chunks.append((sequence, count))
            room -= count
            place += 1
        return Step(decoding, tuple(chunks)) if decoding or chunks else None

    def advance(self, step: Step) -> None:
        """Note that the step was run."""
        for sequence in step.decoding:
            sequence.cached += 1
        for sequence, count in step.chunks:
            self.decoding += sequence.missing == count
            sequence.cached += count

    def reap(self) -> list[Sequence]:
        """Take the rows of those that ended; returns them."""
        ended = [sequence for sequence in self.rows if sequence.ended]
        for sequence in ended:
            self._leave(sequence)
        return ended

    def everyone(self) -> list[Sequence]:
        """All that run or wait."""
        return [*self.rows, *self.interactive, *self.batch]

    def _queue(self, sequence: Sequence) -> deque[Sequence]:
        return self.interactive if sequence.priority == "interactive" else self.batch

    def _sweep(self) -> None:
        now = time.monotonic()
        for sequence in self.rows:
            if sequence.cancelled:
                sequence.ended = True
            elif now >= sequence.deadline and not sequence.ended:
                sequence.finish("length")
        self.reap()
        for queue in (self.interactive, self.batch):
            for sequence in [one for one in queue if one.cancelled or now >= one.wait_until]:
                queue.remove(sequence)
                if not sequence.cancelled:
                    waited = now - sequence.arrived
                    sequence.fail(WaitedTooLong(f"no row became free within {waited:.0f} s; try again later"))

    def _admit(self) -> bool:
        """Give the next in line a row behind the others, if there is one for it."""
        queue = self.interactive or self.batch
        if not queue or len(self.rows) >= self.cache.budget.rows:
            return False
        sequence = queue.popleft()
        sequence.row = len(self.rows)
        if sequence.deadline == float("inf"):
            sequence.deadline = time.monotonic() + sequence.seconds
        sequence.wait_until = float("inf")
        self.rows.append(sequence)
        return True

    def _make_room(self) -> None:
        """Send batch requests, newest first, back to their queue while interactive ones wait for what they hold."""
        wanted = len(self.interactive) - (self.cache.budget.rows - len(self.rows))
        lower = [sequence for sequence in self.rows[: self.decoding] if sequence.priority == "batch"]
        newest_first = sorted(lower, key=lambda one: -one.number)
        for sequence in self.rows[self.decoding :]:
            if self.interactive and sequence.priority == "batch" and sequence.missing > self.chunk:
                self._preempt(sequence)  # its prompt would hold up theirs for several steps
                wanted -= 1
        for sequence in newest_first[: max(0, wanted)]:
            self._preempt(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.cached = 0
        self.batch.appendleft(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Free its row, and close the gap: the last that decodes takes it, the one in prefill takes that one's."""
        hole = sequence.row
        if hole < self.decoding:
            self.decoding -= 1
            hole = self._move(self.decoding, hole)
        self._move(len(self.rows) - 1, hole)
        self.rows.pop()
        sequence.row = -1

    def _move(self, source: int, target: int) -> int:
        """Move a row to a free one; returns the row that is free then."""
        if source != target:
            sequence = self.rows[source]
            self.cache.move(source, target, sequence.cached)
            sequence.row = target
            self.rows[target] = sequence
        return source
