"""Constrained decoding: the tokens that a grammar allows at each position of an output."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from service.engine.grammar_compiler import GrammarCompiler
from service.engine.grammar_probe import GrammarProbe, InvalidGrammar
from service.engine.protocol import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from transformers import PreTrainedTokenizerFast

__all__ = ["Constraint", "Grammars"]


class Reasoning(NamedTuple):
    """Tokens of the reasoning that may precede what a grammar describes, and whether the prompt has opened it."""

    opening: int  # <think>
    closing: int  # </think>
    newline: int  # which may come before it, once
    is_open: bool = False


class Constraint:
    """Position of one output in its grammar. `end` holds the tokens that end an output.

    With `after`, the grammar applies to the tokens after that one, and what comes before is free. With `reasoning`, the
    output begins with reasoning or at once with what the grammar describes; reasoning is free, but cannot end the
    output: then what was asked for would be missing.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        end: Iterable[int],
        *,
        after: int | None = None,
        reasoning: Reasoning | None = None,
    ) -> None:
        self._matcher = matcher
        self._end = list(end)
        self._after = after
        self._reasoning = reasoning
        self._free: Tensor | None = None  # what reasoning may have

    @property
    def active(self) -> bool:
        """Whether the next token is restricted."""
        return self._after is None and not self.complete

    @property
    def complete(self) -> bool:
        """Whether the document is complete, so that no token can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self, vocabulary: int) -> Tensor:
        """Return the tokens that may come next: bool (vocabulary,), on the CPU."""
        if self._reasoning and self._reasoning.is_open:
            if self._free is None:
                self._free = torch.ones(vocabulary, dtype=torch.bool)
                self._free[self._end] = False
            return self._free
        # Not by llguidance.torch: to import it takes seconds, in which this thread serves no request.
        mask = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        bits: Tensor = (mask[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        found = bits.reshape(-1)[:vocabulary].bool()
        if self._reasoning:
            found[[self._reasoning.opening, self._reasoning.newline]] = True
        return found

    def advance(self, token: int) -> None:
        """Consume the next token of the output."""
        reasoning = self._reasoning
        if self._after is not None:
            self._after = None if token == self._after else self._after
        elif reasoning is None:
            self._matcher.consume_token(token)
        elif reasoning.is_open:
            self._reasoning = None if token == reasoning.closing else reasoning
        elif token == reasoning.opening:
            self._reasoning = reasoning._replace(is_open=True)
        elif token == reasoning.newline:
            self._reasoning = reasoning._replace(newline=reasoning.opening)
        else:
            self._reasoning = None
            self._matcher.consume_token(token)


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

    def compile(self, grammar: Grammar, *, thinking: bool, is_open: bool = False) -> Constraint:
        """Return a constraint. Raises Refused.

        `thinking`: reasoning may come first, unless the grammar names the token that it begins after. `is_open`: the
        prompt ends within reasoning.
        """
        self.check(grammar)
        self.warm_up()
        assert self._compiler
        try:
            matcher = self._compiler.compile(grammar.text)
        except ValueError as error:
            raise InvalidGrammar(str(error), grammar) from error
        if grammar.after:
            return Constraint(matcher, self._end, after=self._tokenizer.convert_tokens_to_ids(grammar.after))
        return Constraint(matcher, self._end, reasoning=self._reasoning(is_open=is_open) if thinking else None)

    def _reasoning(self, *, is_open: bool) -> Reasoning | None:
        """Return the tokens of reasoning; None if the tokenizer has none."""
        known = self._tokenizer.get_added_vocab()
        if not {"<think>", "</think>"} <= known.keys():
            return None
        newline, *rest = self._tokenizer.encode("\n", add_special_tokens=False)
        return Reasoning(known["<think>"], known["</think>"], known["<think>"] if rest else newline, is_open)

    def close(self) -> None:
        """End the processes that try grammars."""
        self._probe.close()

    def _setup(self) -> dict[str, Any]:
        # With the added tokens of tokenizer_config.json, which its file may lack.
        backend = copy(self._tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        return {"tokenizer": backend.to_str(), "vocabulary": self._vocabulary, "end": sorted(self._end)}
