"""The statistical tests of the analysis, all one-sided, and the level at which each look is tested.

Fisher's exact test holds for groups of any size and any distribution. The Mann-Whitney test compares times by their
ranks, so that no shape of their distribution is assumed: times are skewed and come from several kinds of requests, for
which a comparison of means would be wrong. scipy takes 0.5 s to import and is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["AlphaSpending", "binomial", "fisher_exact", "mann_whitney", "p95", "thirds"]

_GROWTH = 1.3  # of the candidate's responses from one look to the next
_QUANTILE = 0.95


@dataclass
class AlphaSpending:
    """The looks at one metric and the level of each; false alarms of all looks together stay below `alpha`.

    Looks are taken as the number of responses grows by 30 %, not as time passes. The k-th look is tested at
    alpha / 2k(k+1), which adds up to half of alpha; the other half is kept for the last look.
    """

    first: int
    """Responses of the candidate at the first look."""
    alpha: float
    """The share of equal versions that may be called worse, over all looks."""
    _taken: int = 0

    def next_level(self, responses: int, *, last: bool = False) -> float | None:
        """Return the level of the look that is due at this number of responses; None if none is due."""
        due = self.first if last else self.first * _GROWTH**self._taken
        if responses < due:
            return None
        if last:
            return self.alpha / 2
        self._taken += 1
        return self.alpha / 2 / (self._taken * (self._taken + 1))


def fisher_exact(marked: int, count: int, marked_reference: int, count_reference: int) -> float:
    """Return the p-value of Fisher's exact test: so many marked ones or more in a group of `count` by chance."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(marked - 1, count + count_reference, marked + marked_reference, count))


def mann_whitney(values: Sequence[float], reference: Sequence[float]) -> float:
    """Return the p-value of the Mann-Whitney test: `values` so much larger than `reference` by chance."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(values, reference, alternative="greater").pvalue)


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


def thirds(values: Sequence[float]) -> list[Sequence[float]]:
    """Split `values` into three parts of equal length, in order."""
    cuts = [len(values) * part // 3 for part in range(4)]
    return [values[begin:end] for begin, end in pairwise(cuts)]
