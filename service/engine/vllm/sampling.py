"""Sampling parameters in vLLM's words."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from service.engine.protocol import Refused, Sampling

if TYPE_CHECKING:
    from transformers import GenerationConfig

__all__ = ["params"]

_SEEDS = 1 << 63


def params(
    sampling: Sampling,
    defaults: GenerationConfig,
    *,
    vocabulary: int,
    end: frozenset[int],
    max_tokens: int,
    generated: int = 0,
) -> dict[str, Any]:
    """Return the arguments of vLLM's SamplingParams, without a grammar. Raises Refused for a token that does not exist.

    `defaults`: of the checkpoint; `vocabulary`: the number of logits; `end`: the end tokens of the checkpoint;
    `max_tokens`: of the whole output; `generated`: tokens that it has already, as a part of the prompt.
    """

    def pick(name: str, neutral: float) -> float:
        value: float | None = getattr(sampling, name)
        value = getattr(defaults, name, None) if value is None else value
        return neutral if value is None else value

    _require(sampling.stop_token_ids, vocabulary, "stop_token_ids")
    _require([token for token, _ in sampling.logit_bias], vocabulary, "logit_bias")
    left = max_tokens - generated
    least = max(0, sampling.min_tokens - generated)
    samples = sampling.temperature is not None or bool(defaults.do_sample)
    return {
        "max_tokens": left,
        "temperature": pick("temperature", 1.0) if samples else 0.0,
        "top_p": pick("top_p", 1.0),
        "top_k": max(0, int(pick("top_k", 0))),
        "min_p": pick("min_p", 0.0),
        "repetition_penalty": pick("repetition_penalty", 1.0),
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": None if sampling.seed is None else sampling.seed % _SEEDS,
        # Never sampled, as with the native engine: vLLM's ignore_eos would let them occur within the answer. It keeps
        # its stop tokens from being sampled before min_tokens; those of the request are looked for in the output then.
        "min_tokens": left if sampling.ignore_eos else min(least, left),
        "stop_token_ids": sorted(end if sampling.ignore_eos else end.union(sampling.stop_token_ids)),
        "logit_bias": dict(sampling.logit_bias) or None,
        "logprobs": sampling.logprobs,
        "detokenize": False,
    }


def _require(tokens: Collection[int], vocabulary: int, param: str) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise Refused(f"{param} has the token {token}; the model has tokens from 0 to {vocabulary - 1}", param)
