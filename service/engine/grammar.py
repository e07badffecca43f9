"""Answers that must follow a JSON schema: at every token, which ones may come next."""

from __future__ import annotations

import json
from typing import Any

from service.engine.protocol import Refused

__all__ = ["Constraint", "Grammars"]


class NotASchema(Refused):
    """The schema of response_format cannot be followed; the text says why."""

    param = "response_format"


class Constraint:
    """Where one answer stands in its grammar. It binds from the end of the thought on, if one is still open."""

    def __init__(self, matcher: Any, begins_after: int | None) -> None:
        self._matcher = matcher
        self._begins_after = begins_after

    @property
    def active(self) -> bool:
        """Whether the next token is bound by the grammar."""
        return self._begins_after is None and not self.complete

    @property
    def complete(self) -> bool:
        """Whether the document is whole and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self, vocabulary: int) -> Any:
        """The tokens that may come next: bool (vocabulary,), on the CPU."""
        import llguidance.torch
        import torch

        words = llguidance.torch.allocate_token_bitmask(1, vocabulary)
        llguidance.torch.fill_next_token_bitmask(self._matcher, words, 0)
        bits = (words[0][:, None] >> torch.arange(32, dtype=torch.int32)) & 1
        return bits.reshape(-1)[:vocabulary].bool()

    def advance(self, token: int) -> None:
        """Take the next token of the answer."""
        if self._begins_after is None:
            self._matcher.consume_token(token)
        elif token == self._begins_after:
            self._begins_after = None


class Grammars:
    """Makes constraints for one tokenizer."""

    def __init__(self, tokenizer: Any, vocabulary: int, end: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end = end
        self._known: Any = None  # made at the first use: it takes a while for a large vocabulary

    def constraint(self, schema: str, *, thinking: bool) -> Constraint:
        """Bind an answer to a JSON schema, from `</think>` on if it may think; raises Refused."""
        import llguidance
        import llguidance.hf

        if self._known is None:
            self._known = llguidance.hf.from_tokenizer(
                self._tokenizer, n_vocab=self._vocabulary, eos_token=sorted(self._end)
            )
        try:
            # White space between the parts is fixed: a model that is unsure would write it for ever.
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.loads(schema), defaults={"whitespace_flexible": False}
            )
        except ValueError as error:
            raise NotASchema(f"the JSON schema cannot be used: {error}") from error
        matcher = llguidance.LLMatcher(self._known, grammar)
        if matcher.is_error():
            raise NotASchema(f"the JSON schema cannot be used: {matcher.get_error()}")
        return Constraint(matcher, self._tokenizer.convert_tokens_to_ids("</think>") if thinking else None)
