"""Compilation of JSON schemas by llguidance, which is native code: `schema_probe.py` tries a schema before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["SchemaCompiler"]


class SchemaCompiler:
    """Compiles schemas for one tokenizer, which is given as the JSON of a tokenizer.json. `end` ends an output."""

    def __init__(self, tokenizer: str, vocabulary: int, end: Sequence[int]) -> None:
        import llguidance

        self._tokenizer = llguidance.LLTokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(end))

    def compile(self, schema: str) -> LLMatcher:
        """Return a matcher at the begin of an output; raises ValueError. Uses all that its input makes it use."""
        import llguidance

        # Flexible whitespace would let an uncertain model emit whitespace without end.
        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            json.loads(schema), defaults={"whitespace_flexible": False}
        )
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher
