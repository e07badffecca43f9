"""Incremental conversion of output tokens to text: whole characters only, cut before the first stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from service.engine.protocol import Delta, TokenLogprob

__all__ = ["Detokenizer", "OutputProcessor", "StopStrings"]

# A UTF-8 character has at most four bytes and a token at least one, so four tokens that do not decode never will.
MAX_TOKENS_PER_CHARACTER = 4
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes one output token by token. `decode` maps token ids to text and may omit special tokens."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._context: list[int] = []  # tokens of the previous text; some tokenizers decode a token by its predecessor
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Add a token; return the text that it completes, which may be empty."""
        self._pending.append(token)
        text = self._pending_text()
        if text.endswith(INCOMPLETE) and len(self._pending) < MAX_TOKENS_PER_CHARACTER:
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """Return the incomplete text at the end of the output, with replacement characters for missing bytes."""
        return self._pending_text() if self._pending else ""

    def _pending_text(self) -> str:
        return self._decode(self._context + self._pending)[len(self._decode(self._context)) :]


class StopStrings:
    """Passes text through up to the first stop string; holds back a suffix that may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held_back = ""
        self.matched = False

    def push(self, text: str) -> str:
        """Add text; return what can be sent. Always empty once `matched` is set."""
        if self.matched:
            return ""
        text = self._held_back + text
        at = min((found for stop in self._stops if (found := text.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.matched, self._held_back = True, ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held_back = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return the held-back text; called at the end of an output that no stop string ended."""
        return self._held_back


class OutputProcessor:
    """Turns the output tokens of one request into deltas.

    `end` holds the token ids that end the output. Stop strings are not looked for in the text before the
    `min_tokens`-th token. `prompt_tokens` is repeated in every delta.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: StopStrings,
        end: frozenset[int],
        *,
        min_tokens: int = 0,
        prompt_tokens: int = 0,
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._end = end
        self._missing = min_tokens
        self._prompt_tokens = prompt_tokens
        self._tokens = 0  # whose text is not yet sent
        self._logprobs: list[TokenLogprob] = []  # of them
        self.ended = False  # set by an end token or a stop string, not by the token limit

    def push(self, token: int, logprob: TokenLogprob | None = None) -> Delta | None:
        """Add a token; return the delta that can be sent, if any."""
        if token in self._end:
            self.ended = True
            return None
        self._tokens += 1
        if logprob:
            self._logprobs.append(logprob)
        self._missing -= 1
        text = self._detokenizer.push(token)
        if self._missing <= 0:
            text = self._stops.push(text)
        self.ended = self._stops.matched
        return self._delta(text) if text else None

    def flush(self) -> Delta | None:
        """Return what was held back; called when the output has ended."""
        text = "" if self._stops.matched else self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        return self._delta(text) if text or self._logprobs else None

    def _delta(self, text: str) -> Delta:
        delta = Delta(text, tuple(self._logprobs), self._tokens, self._prompt_tokens)
        self._logprobs, self._tokens = [], 0
        return delta


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of `stop` that `text` ends with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
