"""Which pages of the cache belong to which row: the bookkeeping of a paged KV cache, without the keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["PageTable"]


@dataclass
class PageTable:
    """Pages of `size` tokens, given to rows when their sequences grow and taken back when they end.

    `table` (rows, columns) holds in each row the numbers of its pages in the order of its tokens, then zeros. Page 0
    belongs to no row: padding is written to it. `pages` counts the others. The last column of `table` is always zero,
    so that a token position behind the longest row leads to page 0 too.
    """

    rows: int
    pages: int
    size: int
    longest: int  # pages that one row may have
    table: NDArray[np.int64] = field(init=False)
    changed: bool = field(default=True, init=False)  # since its reader, which clears this, has read the table
    _held: list[int] = field(init=False)
    _free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.table = np.zeros((self.rows, self.longest + 1), dtype=np.int64)
        self._held = [0] * self.rows
        self._free = list(range(self.pages, 0, -1))

    @property
    def used(self) -> int:
        """Pages that belong to rows."""
        return self.pages - len(self._free)

    def fits(self, tokens: int, spare: int = 0) -> bool:
        """Whether a new row can have `tokens` tokens, and `spare` free pages remain."""
        return self._count(tokens) + spare <= len(self._free)

    def reserve(self, row: int, tokens: int) -> bool:
        """Give a row the pages that it lacks for its first `tokens` tokens; False, and none, if too few are free."""
        held, needed = self._held[row], self._count(tokens)
        if needed - held > len(self._free):
            return False
        for column in range(held, needed):
            self.table[row, column] = self._free.pop()
            self._held[row] = column + 1
            self.changed = True
        return True

    def release(self, row: int) -> None:
        """Take back all pages of a row."""
        held = self._held[row]
        self._free.extend(self.table[row, :held].tolist())
        self.table[row, :held] = 0
        self._held[row] = 0
        self.changed |= held > 0

    def move(self, source: int, target: int) -> None:
        """Give the pages of row `source` to row `target`, which must have none."""
        self.table[target] = self.table[source]
        self.table[source] = 0
        self._held[target], self._held[source] = self._held[source], 0
        self.changed = True

    def _count(self, tokens: int) -> int:
        return -(-tokens // self.size)
