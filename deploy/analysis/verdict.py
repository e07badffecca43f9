"""The verdict on one window of a rollout, and the figures that it rests on. They are part of a rollout's record."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

__all__ = ["TIMES", "Metric", "MetricName", "Verdict"]

MetricName = Literal["errors", "answer errors", "p95", "ttft p95", "mirrored p95", "mirrored ttft p95", "agreement"]

TIMES: tuple[MetricName, ...] = ("p95", "mirrored p95", "ttft p95", "mirrored ttft p95")


class Metric(BaseModel):
    """One compared figure: a share from 0 to 1, or seconds; None where nothing was measured."""

    name: MetricName
    candidate: float | None = None
    live: float | None = None
    candidate_requests: int = 0
    live_requests: int = 0
    blocks: int = 0
    """Of times: the blocks of time that were compared; 0: none yet. Of errors: the quarters of a second in which the
    candidate answered."""
    blocks_worse: int = 0
    """Of times: the blocks in which the candidate was slower. Of errors: the incidents, since failures within a quarter
    of a second, or five seconds of an overloaded server, may have one cause."""
    p_value: float | None = None
    """The probability of such a difference by chance; None if it is within the margin or the responses are too few."""
    worse: bool = False
    one_client: bool = False
    """Whether it would be worse, but for the one client that contributes most to the difference."""
    why: str | None = None

    def mark_worse(self, why: str) -> Metric:
        """Set the reason why the candidate is worse, and return the metric."""
        self.worse, self.why = True, why
        return self

    def mark_of_one_client(self) -> None:
        """Take the finding back: it does not hold without the client that contributes most to it."""
        self.worse, self.one_client = False, True


class Verdict(BaseModel):
    """The result of one window: a canary step or the bake."""

    window: str
    at: str = ""
    seconds: float = 0.0
    metrics: list[Metric] = Field(default_factory=list)
    pinned: int = 0
    """Responses whose clients chose the side; they are not judged."""
    mirrored: int = 0
    """The candidate's responses to mirrored requests, which no client received."""
    length_ratio: float | None = None
    """The length of those responses divided by the live slot's; the median."""
    outcome: Literal["not worse", "worse", "too few requests"] = "too few requests"
    reason: str | None = None
