"""Watches a candidate that has requests: its answers beside the live slot's, and the release's checks again."""

from __future__ import annotations

import time
from statistics import median
from typing import Literal

from deploy.analysis.comparison import Comparison, Verdict
from deploy.analysis.samples import Sample, Samples
from deploy.errors import Degraded, NotReady
from deploy.journal.journal import Strategy, now
from deploy.policy import Limits
from deploy.rollout.checks import ask_checks
from deploy.rollout.plan import Rollout

__all__ = ["LEAST", "SETTLE", "Judge"]

_BEFORE = 600.0  # seconds before a window in which the live slot's answers still tell how it does
SETTLE: dict[Strategy, float] = {"overlap": 2.0, "swap": 10.0, "weights": 2.0}
"""Seconds of a window whose times do not count, in a bake errors neither: caches are cold, and after a swap all who
waited come at once."""
LEAST = 5.0  # seconds that a comparison of times spans
_CHECKED = 1.0  # seconds in which a check that was passed need not be asked again


class Judge:
    """The verdict on one window: a canary step, or the bake.

    In a canary both sides are asked at the same time, and which of them is a toss. In the bake the old slot is asked
    nothing any more: the new one is compared with what the old one did before the cutover.

    The times of mirrored answers stand in the verdict and are held to the operator's own limits, not to the live
    slot's: each of them ran beside the live slot's work on the same device, and most of the live ones beside none.

    Where the operator wants no analysis it asks nothing and writes no verdict.
    """

    def __init__(self, rollout: Rollout, window: str) -> None:
        limits = rollout.plan.analysis or Limits(enabled=False)
        self._rollout, self._limits = rollout, limits
        self._began = self._checked = time.monotonic()
        self._is_bake = window == "bake"
        self._times_from = self._began + SETTLE[rollout.plan.strategy]
        self._counts_from = self._times_from if self._is_bake else self._began
        self._verdict = Verdict(window=window, at=now())
        if self._is_bake:
            limits = limits.model_copy(update={"p95_margin": limits.bake_p95_margin})
        self._comparison = Comparison(limits, windows=len(rollout.plan.canary) + 1, times_from=self._times_from)
        record = rollout.entry.record
        self._ours = Samples(rollout.context.host, rollout.candidate, record.version)
        self._theirs = Samples(rollout.context.host, rollout.old or "", record.previous or "")

    def look(self) -> None:
        """Compare what has come so far, ask the checks when it is time; raises Degraded."""
        if not self._limits.enabled:
            return
        self._compare()
        if time.monotonic() - self._checked >= self._limits.checks_every:
            self._ask_checks()

    def conclude(self) -> None:
        """Compare once more, ask the checks once more, and write the verdict down; raises Degraded."""
        if not self._limits.enabled:
            return
        self._compare(last=True)
        if time.monotonic() - self._checked >= _CHECKED:
            self._ask_checks()
        self._end("not worse" if self._comparison.has_enough_requests else "too few requests")

    def __str__(self) -> str:
        return str(self._comparison) if self._limits.enabled else "no analysis"

    def _compare(self, *, last: bool = False) -> None:
        self._read()
        spans = time.monotonic() - self._times_from >= LEAST
        if worse := self._comparison.look(last=last, include_times=spans):
            self._end("worse", worse)
            raise Degraded(worse)

    def _read(self) -> None:
        """Sort what has come: mirrored answers are the candidate's, though the live slot's workers note them."""
        ours: list[Sample] = self._ours.new()
        for one in self._theirs.new():
            if one.is_mirrored:
                ours.append(one)
            elif one.at >= self._began - _BEFORE:
                is_beside = (one.at < self._began) == self._is_bake
                (self._comparison.live if is_beside else self._comparison.before).samples.append(one)
        self._comparison.candidate.samples += [one for one in ours if one.at >= self._counts_from]

    def _ask_checks(self) -> None:
        context = self._rollout.context
        try:
            ask_checks(context, context.releases.get(self._rollout.plan.version), self._rollout.candidate)
        except NotReady as error:
            reason = f"asked again, {error}"
            self._end("worse", reason)
            raise Degraded(reason) from error
        self._checked = time.monotonic()

    def _end(self, outcome: Literal["not worse", "worse", "too few requests"], reason: str | None = None) -> None:
        verdict = self._verdict
        verdict.outcome, verdict.reason, verdict.metrics = outcome, reason, self._comparison.metrics
        mirrored = self._comparison.candidate.select(mirrored=True).samples
        ratios = [one.ratio for one in mirrored if one.ratio is not None]
        verdict.mirrored = len(mirrored)
        verdict.length_ratio = round(median(ratios), 3) if ratios else None
        verdict.seconds = round(time.monotonic() - self._began, 3)
        self._rollout.entry.record.analysis.append(verdict)
