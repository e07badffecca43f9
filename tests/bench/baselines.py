"""transformers' own `generate` in this process: one request after the other, and a padded batch.

Prompts are rendered, tokenized and patched before the clock runs. The servers it stands beside do all of that, and
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
from tests.bench.clients import Answer
from tests.bench.figures import Figures
from tests.bench.questions import Kind, messages

__all__ = ["Generate", "queued"]


class Generate:
    """A checkpoint and `generate`, on so many threads; answers are `tokens` long, and greedy."""

    def __init__(self, model: Path, *, tokens: int, threads: int) -> None:
        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self._tokens = tokens
        self._processor = Processor.read(model)
        self._model = Glm4vForConditionalGeneration.from_pretrained(model, dtype="auto", attn_implementation="sdpa")
        self._model.eval()

    def sequential(self, kind: Kind, indices: range) -> tuple[Figures, list[Answer]]:
        """Answer one question after the other; the time to the first token is taken with a streamer."""
        prepared = [self._prepare(kind, [index]) for index in indices]
        answers, first, seconds = [], [], 0.0
        for inputs in prepared:
            clock = _Clock()
            began = time.perf_counter()
            made = self._generate(inputs, clock)
            seconds += time.perf_counter() - began
            first.append((clock.first - began) * 1000)
            answers += self._read(inputs, made)
        return Figures(self._tokens * len(answers), seconds, tuple(first)), answers

    def padded(self, kind: Kind, indices: range) -> tuple[Figures, list[Answer]]:
        """Answer all at once, padded on the left; nobody has anything before the whole batch is done."""
        inputs = self._prepare(kind, list(indices))
        began = time.perf_counter()
        made = self._generate(inputs)
        seconds = time.perf_counter() - began
        return Figures(made.shape[0] * self._tokens, seconds, (seconds * 1000,) * len(made)), self._read(inputs, made)

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
        made = self._model.generate(
            **inputs,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=self._tokens,
            streamer=streamer,
        )
        new = made[:, inputs["input_ids"].shape[1] :]
        if new.shape[1] != self._tokens:
            raise ValueError(f"{new.shape[1]} tokens came instead of {self._tokens}")
        return new

    def _read(self, inputs: Any, made: Any) -> list[Answer]:
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        texts = self._processor.tokenizer.batch_decode(made, skip_special_tokens=True)
        return [Answer(text, length) for text, length in zip(texts, lengths, strict=True)]


class _Clock(BaseStreamer):  # type: ignore[misc]  # transformers is untyped
    """Notes when the first new token is there."""

    def __init__(self) -> None:
        self.first = 0.0
        self._prompt_came = False

    def put(self, _value: Any) -> None:
        """Take the prompt, then one token after the other."""
        if self._prompt_came and not self.first:
            self.first = time.perf_counter()
        self._prompt_came = True

    def end(self) -> None:
        """Do nothing."""


def queued(one: Figures, clients: int) -> Figures:
    """What `clients` who ask at once see of a sequential engine: the same rate, and a wait for those before them."""
    each = one.seconds / len(one.first) * 1000
    first = sum(one.first) / len(one.first)
    return Figures(one.tokens, one.seconds, tuple(first + before * each for before in range(clients)))
