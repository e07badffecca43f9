"""The statistical tests of the analysis, all one-sided, and the level at which each look is tested.

scipy takes 0.6 s to import and is imported where it is used, at the first look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

__all__ = ["AlphaSpending", "binomial", "fisher_exact", "p95", "student"]

_GROWTH = 1.3  # from one look to the next
_LAST = 0.75  # share of the false alarms that is kept for the last look
_QUANTILE = 0.95


@dataclass
class AlphaSpending:
    """The looks at one metric and the level of each; false alarms of all looks together stay below `alpha`.

    A look is due whenever the number of responses, or the seconds that they span, has grown by 30 %. The k-th look is
    tested at alpha / 4k(k+1), which adds up to a quarter of alpha; the rest is kept for the last look, which sees most.
    """

    first: float
    """The candidate's responses, or the seconds that they span, at the first look."""
    alpha: float
    """The share of equal versions that may be called worse, over all looks."""
    _taken: int = 0

    def next_level(self, amount: float, *, last: bool = False) -> float | None:
        """Return the level of the look that is due at this number of responses, or seconds; None if none is due."""
        due = self.first if last else self.first * _GROWTH**self._taken
        if amount < due:
            return None
        if last:
            return self.alpha * _LAST
        self._taken += 1
        return self.alpha * (1 - _LAST) / (self._taken * (self._taken + 1))


def fisher_exact(marked: int, count: int, marked_reference: int, count_reference: int) -> float:
    """Return the p-value of Fisher's exact test: so many marked ones or more in a group of `count` by chance."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(marked - 1, count + count_reference, marked + marked_reference, count))


def student(value: float, freedom: float) -> float:
    """Return the probability that Student's t with so many degrees of freedom (inf: the normal one) exceeds `value`."""
    from scipy.special import ndtr, stdtr

    return float(ndtr(-value) if freedom == inf else stdtr(freedom, -value))


def binomial(successes: int, trials: int, share: float) -> float:
    """Return the p-value of the binomial test: so few successes or fewer where `share` of the trials succeed."""
    from scipy.stats import binom

    return float(binom.cdf(successes, trials, share))


def p95(values: Sequence[float]) -> float | None:
    """Return the 95th percentile, a value that was measured: the smallest that 95 % do not exceed; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(_QUANTILE * len(ordered)))]
