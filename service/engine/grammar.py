"""Constrained decoding: the tokens that a JSON schema allows at each position of an output."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from service.engine.protocol import Refused

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = ["Constraint", "GrammarCompiler"]


class InvalidSchema(Refused):
    """The schema of response_format cannot be compiled."""

    param = "response_format"


class Constraint:
    """Position of one output in its grammar.

    If `start_token` is given, the grammar applies to the tokens after its first occurrence, else to all.
    """

    def __init__(self, matcher: LLMatcher, start_token: int | None) -> None:
        self._matcher = matcher
        self._start_token = start_token

    @property
    def active(self) -> bool:
        """Whether the grammar restricts the next token."""
        return self._start_token is None and not self.complete

    @property
    def complete(self) -> bool:
        """Whether the document is complete, so that no token can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self, vocabulary: int) -> Tensor:
        """Return the tokens that may come next: bool (vocabulary,), on the CPU."""
        import llguidance.torch

        bitmask = llguidance.torch.allocate_token_bitmask(1, vocabulary)
        llguidance.torch.fill_next_token_bitmask(self._matcher, bitmask, 0)
        bits: Tensor = (bitmask[0][:, None] >> torch.arange(32, dtype=torch.int32)) & 1
        return bits.reshape(-1)[:vocabulary].bool()

    def advance(self, token: int) -> None:
        """Consume the next token of the output."""
        if self._start_token is None:
            self._matcher.consume_token(token)
        elif token == self._start_token:
            self._start_token = None


class GrammarCompiler:
    """Compiles JSON schemas to constraints for one tokenizer. `end` holds the token ids that end an output."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, end: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end = end
        self._ll_tokenizer: LLTokenizer | None = None  # built at the first use: slow for a large vocabulary

    def compile(self, schema: str, *, thinking: bool) -> Constraint:
        """Return a constraint for a JSON schema; if `thinking`, it starts after `</think>`. Raises Refused."""
        import llguidance
        import llguidance.hf

        if self._ll_tokenizer is None:
            self._ll_tokenizer = llguidance.hf.from_tokenizer(
                self._tokenizer, n_vocab=self._vocabulary, eos_token=sorted(self._end)
            )
        try:
            # Flexible whitespace would let an uncertain model emit whitespace without end.
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.loads(schema), defaults={"whitespace_flexible": False}
            )
        except ValueError as error:
            raise InvalidSchema(f"the JSON schema cannot be used: {error}") from error
        matcher = llguidance.LLMatcher(self._ll_tokenizer, grammar)
        if matcher.is_error():
            raise InvalidSchema(f"the JSON schema cannot be used: {matcher.get_error()}")
        return Constraint(matcher, self._tokenizer.convert_tokens_to_ids("</think>") if thinking else None)
