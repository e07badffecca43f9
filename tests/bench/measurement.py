"""The result of one measurement of a server or an engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Measurement", "percentile"]


def percentile(values: tuple[float, ...] | list[float], share: int) -> float:
    """Return the nearest-rank percentile, `share` from 1 to 100; NaN without values."""
    if not values:
        return float("nan")
    return sorted(values)[max(0, -(-share * len(values) // 100) - 1)]


@dataclass(frozen=True)
class Measurement:
    """Tokens generated in `seconds`, and latencies in ms."""

    tokens: int
    seconds: float
    first: tuple[float, ...]
    """From sending a request to the first piece of text, one for each request."""
    gaps: tuple[float, ...] = ()
    """Between two pieces of text."""
    cpu: float = 0.0
    """CPU time of the load generator, as a share of one core."""

    @property
    def rate(self) -> float:
        """Tokens per second, of all clients together."""
        return self.tokens / self.seconds

    def __add__(self, other: Measurement) -> Measurement:
        seconds = self.seconds + other.seconds
        return Measurement(
            self.tokens + other.tokens,
            seconds,
            self.first + other.first,
            self.gaps + other.gaps,
            (self.cpu * self.seconds + other.cpu * other.seconds) / seconds,
        )

    def document(self) -> dict[str, Any]:
        """Return the fields of --json."""
        totals = {name: value for name, value in asdict(self).items() if name not in ("first", "gaps")}
        return totals | {
            "tokens_per_second": self.rate,
            "ttft_ms": {"p50": percentile(self.first, 50), "p99": percentile(self.first, 99)},
            "itl_ms": {"p50": percentile(self.gaps, 50), "p99": percentile(self.gaps, 99)} if self.gaps else None,
            "requests": len(self.first),
        }
