"""Sampling parameters of one request, with every default filled in."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from service.engine.protocol import Refused, Sampling

if TYPE_CHECKING:
    from transformers import GenerationConfig

__all__ = ["Bias", "SamplingParams"]


@dataclass(frozen=True, eq=False)
class Bias:
    """What is added to the logits of some tokens: their ids, long (count,), and values, float (count,), on the CPU."""

    tokens: Tensor
    values: Tensor

    @classmethod
    def forbidding(cls, tokens: Collection[int]) -> Bias:
        """Return the bias with which these tokens are never chosen."""
        return cls(torch.tensor(sorted(tokens), dtype=torch.long), torch.full((len(tokens),), -torch.inf))


@dataclass(frozen=True)
class SamplingParams:
    """A Sampling in which no field that the sampler reads is left open."""

    temperature: float  # 0: greedy
    top_p: float
    top_k: int  # 0: all
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logprobs: int | None
    bias: Bias | None = None
    early: Bias | None = None  # forbids what ends an output, before it has `min_tokens` tokens
    always: Bias | None = None  # forbids the end tokens of the checkpoint at any time
    min_tokens: int = 0

    @classmethod
    def resolve(
        cls, requested: Sampling, defaults: GenerationConfig, *, vocabulary: int, end: frozenset[int]
    ) -> SamplingParams:
        """Fill in fields that were not requested from `defaults`, the checkpoint's GenerationConfig.

        `vocabulary` is the number of logits, `end` holds the end tokens of the checkpoint. Raises Refused for a token
        that does not exist.
        """

        def pick(name: str, neutral: float) -> float:
            value: float | None = getattr(requested, name)
            value = getattr(defaults, name, None) if value is None else value
            return neutral if value is None else value

        _require_tokens(requested.stop_token_ids, vocabulary, "stop_token_ids")
        samples = requested.temperature is not None or bool(defaults.do_sample)
        return cls(
            temperature=pick("temperature", 1.0) if samples else 0.0,
            top_p=pick("top_p", 1.0),
            top_k=max(0, int(pick("top_k", 0))),
            min_p=pick("min_p", 0.0),
            repetition_penalty=pick("repetition_penalty", 1.0),
            presence_penalty=requested.presence_penalty,
            frequency_penalty=requested.frequency_penalty,
            seed=secrets.randbits(64) if requested.seed is None else requested.seed % 2**64,
            logprobs=requested.logprobs,
            bias=_bias(requested.logit_bias, vocabulary),
            early=Bias.forbidding(end.union(requested.stop_token_ids)) if requested.min_tokens else None,
            always=Bias.forbidding(end) if requested.ignore_eos else None,
            min_tokens=requested.min_tokens,
        )

    def biases(self, count: int) -> list[Bias]:
        """Return what is added to the logits of the next token of an output that has `count` tokens."""
        early = self.early if count < self.min_tokens else None
        return [bias for bias in (self.bias, early, self.always) if bias]

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def _bias(requested: tuple[tuple[int, float], ...], vocabulary: int) -> Bias | None:
    if not requested:
        return None
    tokens, values = zip(*requested, strict=True)
    _require_tokens(tokens, vocabulary, "logit_bias")
    return Bias(torch.tensor(tokens, dtype=torch.long), torch.tensor(values, dtype=torch.float32))


def _require_tokens(tokens: Collection[int], vocabulary: int, param: str) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise Refused(f"{param} has the token {token}; the model has tokens from 0 to {vocabulary - 1}", param)
