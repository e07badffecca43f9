"""The baseline without a server: transformers' `generate` in this process, one request at a time or a padded batch.

Prompts are rendered, tokenized and patched before the clock runs. The servers that are compared with it do that, and
HTTP, while it runs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import Glm4vForConditionalGeneration
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from service.model.processor import Processor
from tests.bench.chat_load import Answer
from tests.bench.measurement import Measurement
from tests.bench.prompts import Kind, messages

__all__ = ["Generate", "with_queue"]


class Generate:
    """`generate` with a checkpoint, on `threads` threads; answers are greedy and `tokens` long."""

    def __init__(self, model: Path, *, tokens: int, threads: int) -> None:
        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self._tokens = tokens
        self._processor = Processor.read(model)
        self._model = Glm4vForConditionalGeneration.from_pretrained(model, dtype="auto", attn_implementation="sdpa")
        self._model.eval()

    def sequential(self, kind: Kind, indices: range) -> tuple[Measurement, list[Answer]]:
        """Answer one prompt after the other; a streamer measures the time to the first token."""
        prepared = [self._prepare(kind, [index]) for index in indices]
        answers, first, seconds = [], [], 0.0
        for inputs in prepared:
            clock = _Clock()
            started = time.perf_counter()
            tokens = self._generate(inputs, clock)
            seconds += time.perf_counter() - started
            first.append((clock.first - started) * 1000)
            answers += self._decode(inputs, tokens)
        return Measurement(self._tokens * len(answers), seconds, tuple(first)), answers

    def padded(self, kind: Kind, indices: range) -> tuple[Measurement, list[Answer]]:
        """Answer all prompts as one batch, padded on the left; no token is available before the batch is done."""
        inputs = self._prepare(kind, list(indices))
        started = time.perf_counter()
        tokens = self._generate(inputs)
        seconds = time.perf_counter() - started
        measurement = Measurement(tokens.shape[0] * self._tokens, seconds, (seconds * 1000,) * len(tokens))
        return measurement, self._decode(inputs, tokens)

    def _prepare(self, kind: Kind, indices: list[int]) -> Any:
        return self._processor.apply_chat_template(
            [messages(kind, index) for index in indices],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
            enable_thinking=False,
        )

    @torch.inference_mode()
    def _generate(self, inputs: Any, streamer: BaseStreamer | None = None) -> Any:
        tokens = self._model.generate(
            **inputs,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=self._tokens,
            streamer=streamer,
        )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        if new.shape[1] != self._tokens:
            raise ValueError(f"generate returned {new.shape[1]} tokens instead of {self._tokens}")
        return new

    def _decode(self, inputs: Any, tokens: Any) -> list[Answer]:
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        texts = self._processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [Answer(text, length) for text, length in zip(texts, lengths, strict=True)]


class _Clock(BaseStreamer):  # type: ignore[misc]  # transformers is untyped
    """Records when the first new token is generated."""

    def __init__(self) -> None:
        self.first = 0.0
        self._has_prompt = False

    def put(self, _value: Any) -> None:
        """Receive the prompt, then each new token."""
        if self._has_prompt and not self.first:
            self.first = time.perf_counter()
        self._has_prompt = True

    def end(self) -> None:
        """Do nothing."""


def with_queue(single: Measurement, clients: int) -> Measurement:
    """Compute what concurrent clients measure at a sequential engine: the same rate, and the wait in its queue."""
    each = single.seconds / len(single.first) * 1000
    first = sum(single.first) / len(single.first)
    return Measurement(single.tokens, single.seconds, tuple(first + ahead * each for ahead in range(clients)))
