"""How much prefill runs between two tokens of the requests that decode."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Pace", "gap_of"]

_GPU_GAP = 0.05  # seconds


def gap_of(setting: int, device: str) -> float:
    """Return `max_gap` for the setting `max_token_gap_ms` on a type of device: `cpu` has no bound by default."""
    if setting:
        return setting / 1000
    return float("inf") if device == "cpu" else _GPU_GAP


@dataclass
class Pace:
    """Chooses the number of prompt tokens of each step, from what the steps before it took.

    `chunk` is the most in any step. While no request decodes, nobody waits for a token, and a step has as many. Beside
    decoding requests a step shall take at most `max_gap` seconds, but it has always `least` prompt tokens, fewer than
    which cost as much. If decoding alone takes more than half of `max_gap`, prefill gets as much time as decoding, as
    prompts would wait too long otherwise.
    """

    chunk: int
    max_gap: float = float("inf")
    least: int = 16
    _limit: float = field(init=False)
    _decode: float = field(default=0.0, init=False)  # seconds of the last step without prefill

    def __post_init__(self) -> None:
        self.least = min(self.least, self.chunk)
        self._limit = self.chunk if self.max_gap == float("inf") else self.least

    def tokens(self, decoding: int) -> int:
        """Return the prompt tokens that the coming step may have beside `decoding` requests; at least 1."""
        return int(self._limit) if decoding else self.chunk

    def record(self, decoding: int, tokens: int, seconds: float) -> None:
        """Take account of a step: `tokens` prompt tokens beside `decoding` requests took `seconds`.

        The limit is multiplied by the time allowed over the time taken, by 2 at most and by 1/2 at least. A step with
        fewer tokens than the limit does not raise it.
        """
        if not decoding:
            return
        if not tokens:
            self._decode = seconds
            return
        ratio = min(2.0, max(0.5, max(self.max_gap, 2 * self._decode) / max(seconds, 1e-9)))
        if ratio < 1 or tokens >= int(self._limit):
            self._limit = min(self.chunk, max(self.least, min(self._limit, tokens) * ratio))
