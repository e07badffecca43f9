"""Constrained decoding: the tokens that a grammar allows at each position of an output."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from service.engine.grammar_compiler import GrammarCompiler
from service.engine.grammar_probe import GrammarProbe, InvalidGrammar
from service.engine.protocol import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from transformers import PreTrainedTokenizerFast

__all__ = ["Constraint", "Grammars"]


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
        # Not by llguidance.torch: to import it takes seconds, in which this thread serves no request.
        mask = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        bits: Tensor = (mask[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        return bits.reshape(-1)[:vocabulary].bool()

    def advance(self, token: int) -> None:
        """Consume the next token of the output."""
        if self._start_token is None:
            self._matcher.consume_token(token)
        elif token == self._start_token:
            self._start_token = None


class Grammars:
    """Compiles grammars to constraints for one tokenizer. `end` holds the token ids that end an output.

    `max_schema` is the limit of a grammar, in characters.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, end: frozenset[int], *, max_schema: int
    ) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end = end
        self._probe = GrammarProbe(self._setup, max_schema)
        self._compiler: GrammarCompiler | None = None

    def warm_up(self) -> None:
        """Prepare for the first grammar: for 150,000 tokens that takes 1 s, in which no other thread runs."""
        if self._compiler is None:
            self._compiler = GrammarCompiler(**self._setup())

    def check(self, grammar: Grammar) -> None:
        """Return if the grammar can be compiled; raises Refused."""
        self._probe.check(grammar)

    def compile(self, grammar: Grammar, *, thinking: bool) -> Constraint:
        """Return a constraint; it starts after the token that the grammar names, else after `</think>` if `thinking`.

        Raises Refused.
        """
        self.check(grammar)
        self.warm_up()
        assert self._compiler
        try:
            matcher = self._compiler.compile(grammar.text)
        except ValueError as error:
            raise InvalidGrammar(str(error), grammar) from error
        after = grammar.after or ("</think>" if thinking else None)
        return Constraint(matcher, self._tokenizer.convert_tokens_to_ids(after) if after else None)

    def close(self) -> None:
        """End the processes that try grammars."""
        self._probe.close()

    def _setup(self) -> dict[str, Any]:
        # With the added tokens of tokenizer_config.json, which its file may lack.
        backend = copy(self._tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        return {"tokenizer": backend.to_str(), "vocabulary": self._vocabulary, "end": sorted(self._end)}
