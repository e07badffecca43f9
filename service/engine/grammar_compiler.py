"""Compilation of grammars by llguidance, which is native code: `grammar_probe.py` tries a grammar before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["GrammarCompiler"]


class GrammarCompiler:
    """Compiles grammars for one tokenizer, which is given as the JSON of a tokenizer.json. `end` ends an output."""

    def __init__(self, tokenizer: str, vocabulary: int, end: Sequence[int]) -> None:
        import llguidance

        self._tokenizer = llguidance.LLTokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(end))

    def compile(self, grammar: str) -> LLMatcher:
        """Return a matcher at the begin of an output; raises ValueError. Uses all that its input makes it use."""
        import llguidance

        lark = llguidance.LLMatcher.grammar_from_lark(grammar)
        matcher = llguidance.LLMatcher(self._tokenizer, lark, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher
