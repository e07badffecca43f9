"""What was measured of one contender in one situation, and what is told of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Figures", "percentile"]


def percentile(values: tuple[float, ...] | list[float], share: int) -> float:
    """The nearest-rank percentile, `share` of 1 to 100; NaN of nothing."""
    if not values:
        return float("nan")
    return sorted(values)[max(0, -(-share * len(values) // 100) - 1)]


@dataclass(frozen=True)
class Figures:
    """Tokens that came in `seconds`; times are in ms. `cpu` is what the load generator took of one core."""

    tokens: int
    seconds: float
    first: tuple[float, ...]  # request sent to first piece of text, one for each request
    gaps: tuple[float, ...] = ()  # between two pieces of text
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per second, of all clients together."""
        return self.tokens / self.seconds

    def __add__(self, other: Figures) -> Figures:
        seconds = self.seconds + other.seconds
        return Figures(
            self.tokens + other.tokens,
            seconds,
            self.first + other.first,
            self.gaps + other.gaps,
            (self.cpu * self.seconds + other.cpu * other.seconds) / seconds,
        )

    def document(self) -> dict[str, Any]:
        """What --json keeps."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("first", "gaps")}
        return kept | {
            "tokens_per_second": self.rate,
            "ttft_ms": {"p50": percentile(self.first, 50), "p99": percentile(self.first, 99)},
            "itl_ms": {"p50": percentile(self.gaps, 50), "p99": percentile(self.gaps, 99)} if self.gaps else None,
            "requests": len(self.first),
        }
