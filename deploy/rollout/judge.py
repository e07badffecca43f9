"""The judge of a candidate that serves clients: compares its responses with the live slot's and repeats the checks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from math import inf
from statistics import median
from typing import Literal

from deploy.analysis.comparison import Comparison
from deploy.analysis.evidence import Disturbances
from deploy.analysis.samples import Sample, Samples
from deploy.analysis.verdict import Verdict
from deploy.errors import Degraded, NotReady
from deploy.journal.record import Strategy, now, seconds_between
from deploy.policy import Limits
from deploy.rollout.checks import run_checks
from deploy.rollout.plan import Rollout
from deploy.rollout.question import Question
from service.contract.generations import current

__all__ = ["MIN_SPAN", "WARM_UP", "Judge"]

WARM_UP: dict[Strategy, float] = {"overlap": 2.0, "swap": 10.0, "weights": 2.0}
"""Seconds at the start of a window whose times do not count, in a bake neither their errors: caches are cold, and after
a swap all waiting clients are served at once."""
MIN_SPAN = 5.0  # seconds that times must span before the absolute limits are applied
_HALF, _FEW = 50.0, 10.0  # percent
_CHECKED = 1.0  # seconds within which passed checks are not repeated at the end of a window


class Judge:
    """The verdict on one window: a canary step, or the bake.

    In a canary step both slots serve at the same time, and each request is assigned at random. In the bake the old slot
    gets no requests: the new one is compared with what the old one did before the cutover. A slot that answers fewer
    requests answers them faster, so the times of a candidate with more than half of the requests are compared as in the
    bake, and there only those count which the live slot needed while it answered at least 90 %.

    The times of mirrored responses are in the verdict and are held to the operator's absolute limits, not to the live
    slot's times: each was computed while the same device served the live slot's request.

    Without an analysis nothing is compared or checked, and no verdict is recorded.
    """

    def __init__(self, rollout: Rollout, window: str, *, share: float = 100.0, began: float | None = None) -> None:
        """`share`: of the requests that the candidate answers, in percent.

        `began`: CLOCK_MONOTONIC at the begin of the window; by default it begins now.
        """
        limits = rollout.plan.analysis or Limits(enabled=False)
        self._rollout, self._limits = rollout, limits
        self._began = self._checked = time.monotonic() if began is None else began
        self._checks: Question[None] | None = None
        self._is_bake = window == "bake"
        self._times_from = self._began + WARM_UP[rollout.plan.strategy]
        self._counts_from = self._times_from if self._is_bake else self._began
        self._verdict = Verdict(window=window, at=now())
        self._disturbances, self._read_at = Disturbances(), self._began
        is_paired = share <= _HALF
        if not is_paired:
            limits = limits.model_copy(update={"p95_margin": limits.bake_p95_margin})
        self._comparison = Comparison(
            limits,
            windows=len(rollout.plan.canary) + 1,
            times_from=self._times_from,
            is_paired=is_paired,
            before_until=min(self._began, _alone_until(rollout)),
            is_random=rollout.plan.sticky is None,
            disturbances=None if self._is_bake else self._disturbances,
        )
        self._candidate = Samples(rollout.context.host, rollout.candidate, rollout.record.version)
        rollout.reference.update()
        self._add_live(rollout.reference)

    def update(self) -> None:
        """Compare the responses so far, and repeat the checks when they are due; raises Degraded.

        The checks run in a thread, and their result is found at a later call.
        """
        if not self._limits.enabled:
            return
        self._compare()
        self._have_passed(self._limits.checks_every)

    def conclude(self) -> bool:
        """Repeat the checks a last time, then compare, and record the verdict; raises Degraded.

        Returns False while the checks run: it is to be called again.
        """
        if not self._limits.enabled:
            return True
        if not self._have_passed(_CHECKED):
            return False
        self._compare(last=True)
        self._record("not worse" if self._comparison.has_enough_requests else "too few requests")
        return True

    def __str__(self) -> str:
        return str(self._comparison) if self._limits.enabled else "no analysis"

    def _compare(self, *, last: bool = False) -> None:
        self._read()
        include_times = time.monotonic() - self._times_from >= MIN_SPAN
        if reason := self._comparison.look(last=last, include_times=include_times):
            self._record("worse", reason)
            raise Degraded(reason)

    def _read(self) -> None:
        """Add new samples to their sides, and the time since the last call if a pinned request was answered in it."""
        now = time.monotonic()
        if _has_pinned(self._rollout):
            self._disturbances.add(self._read_at, now)
        self._read_at = now
        self._add_live(self._rollout.reference.update())
        found = [sample for sample in self._candidate.new() if sample.at >= self._counts_from]
        self._comparison.candidate.add(found)

    def _add_live(self, samples: Iterable[Sample]) -> None:
        """Add samples of the live slot. Mirrored ones are the candidate's, although the live slot writes them."""
        mirrored, before, beside = [], [], []
        for sample in samples:
            if sample.is_mirrored:
                mirrored.append(sample)
            elif sample.at < self._began or self._is_bake:
                before.append(sample)
            else:
                beside.append(sample)
        self._comparison.candidate.add(sample for sample in mirrored if sample.at >= self._counts_from)
        self._comparison.before.add(before)
        self._comparison.live.add(beside)

    def _have_passed(self, age: float) -> bool:
        """Return whether the checks have passed in the last `age` seconds; if not, run them. Raises Degraded."""
        if self._checks is None and time.monotonic() - self._checked >= age:
            context, slot = self._rollout.context, self._rollout.candidate
            release = context.releases.get(self._rollout.plan.version)
            self._checks = Question(lambda: run_checks(context.host, release, slot))
        elif self._checks is not None and self._checks.is_answered:
            checks, self._checks = self._checks, None
            try:
                checks.answer  # noqa: B018
            except NotReady as error:
                reason = f"when its checks were repeated: {error}"
                self._record("worse", reason)
                raise Degraded(reason) from error
            self._checked = time.monotonic()
        return self._checks is None

    def _record(self, outcome: Literal["not worse", "worse", "too few requests"], reason: str | None = None) -> None:
        verdict = self._verdict
        verdict.outcome, verdict.reason, verdict.metrics = outcome, reason, self._comparison.metrics
        mirrored = self._comparison.mirrored
        verdict.pinned = self._comparison.candidate.pinned + self._comparison.live.pinned
        ratios = [sample.ratio for sample in mirrored if sample.ratio is not None]
        verdict.mirrored = len(mirrored)
        verdict.length_ratio = round(median(ratios), 3) if ratios else None
        verdict.seconds = round(time.monotonic() - self._began, 3)
        self._rollout.record.analysis.append(verdict)


def _has_pinned(rollout: Rollout) -> bool:
    """Return whether a request is in flight whose client chose the side of the canary."""
    found = (current(rollout.context.host.runtime, slot) for slot in (rollout.candidate, rollout.old) if slot)
    return any(worker.pinned for one in found if one for worker in one.alive_workers)


def _alone_until(rollout: Rollout) -> float:
    """Return when the candidate began to answer more than 10 % of the requests; infinity if it did not."""
    begun = [step.at for step in rollout.record.steps if step.phase == "canary"]
    larger = [at for at, share in zip(begun, rollout.record.canary, strict=False) if share > _FEW]
    return time.monotonic() - (seconds_between(larger[0], now()) or 0.0) if larger else inf
