"""Tokens become text as they come: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from service.engine.protocol import Delta, TokenLogprob

__all__ = ["Answer", "Detokenizer", "StopStrings"]

# A character is four bytes at most and a token at least one: what is unfinished after four will never be whole.
LONGEST_CHARACTER = 4
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes one answer token by token. `decode` maps token ids to text and may leave out special tokens."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._before: list[int] = []  # the tokens of the last text: some tokenizers write a token by what precedes it
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Take the next token; the answer is the text that became complete with it, often all of the token's."""
        self._pending.append(token)
        text = self._new()
        if text.endswith(UNFINISHED) and len(self._pending) < LONGEST_CHARACTER:
            return ""
        self._before, self._pending = self._pending, []
        return text

    def rest(self) -> str:
        """Give what is still unfinished at the answer's end, with replacement characters where bytes are missing."""
        return self._new() if self._pending else ""

    def _new(self) -> str:
        return self._decode(self._before + self._pending)[len(self._decode(self._before)) :]


class StopStrings:
    """Lets text through up to the first stop string; keeps back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.met = False

    def push(self, text: str) -> str:
        """Take the next text; the answer is what is safe to send. After `met` is set it is always empty."""
        if self.met:
            return ""
        text = self._held + text
        at = min((found for stop in self._stops if (found := text.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.met, self._held = True, ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """Give what was kept back: the answer has ended and no stop string was met."""
        return self._held


class Answer:
    """One answer while it is made: its tokens go in, the pieces to send come out. `end` are the ids that end it."""

    def __init__(self, detokenizer: Detokenizer, stops: StopStrings, end: frozenset[int]) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._end = end
        self._reports: list[TokenLogprob] = []  # of tokens whose text is held back
        self.ended = False  # by itself or by a stop string, not by its length

    def push(self, token: int, report: TokenLogprob | None = None) -> Delta | None:
        """Take the next token; the answer is what may be sent now, if anything."""
        if token in self._end:
            self.ended = True
            return None
        if report:
            self._reports.append(report)
        text = self._stops.push(self._detokenizer.push(token))
        self.ended = self._stops.met
        return self._delta(text) if text else None

    def rest(self) -> Delta | None:
        """Give what was held back, when the answer is over."""
        text = "" if self._stops.met else self._stops.push(self._detokenizer.rest()) + self._stops.rest()
        return self._delta(text) if text or self._reports else None

    def _delta(self, text: str) -> Delta:
        reports, self._reports = tuple(self._reports), []
        return Delta(text, reports)


def _overlap(text: str, stop: str) -> int:
    """Measure the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
