"""Sampling parameters of one request, with every default filled in."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.engine.protocol import Sampling

if TYPE_CHECKING:
    from transformers import GenerationConfig

__all__ = ["SamplingParams"]


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

    @classmethod
    def resolve(cls, requested: Sampling, defaults: GenerationConfig) -> SamplingParams:
        """Fill in fields that were not requested from `defaults`, the checkpoint's GenerationConfig."""

        def pick(name: str, neutral: float) -> float:
            value: float | None = getattr(requested, name)
            value = getattr(defaults, name, None) if value is None else value
            return neutral if value is None else value

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
        )

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
