"""Shared by the tests of the engine's core: requests of many kinds, and the tokens that `generate` gives for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from service.contract.engine_settings import EngineSettings
from service.demo_models import tiny
from service.engine import Delta, Sampling
from service.engine.cache import Budget, SlotCache
from service.engine.core import Core
from service.engine.detokenizer import Detokenizer, OutputProcessor, StopStrings
from service.engine.pace import Pace
from service.engine.paged_cache import PagedCache
from service.engine.prompt import Prompt, PromptBuilder
from service.engine.runner import Runner
from service.engine.sampling_params import SamplingParams
from service.engine.sequence import Event, Sequence
from service.engine.vision import VisionEncoder
from service.model.checkpoint import load
from tests.flex_fixtures import kernel

MAX_TOKENS = 20  # of an output
COLUMNS = 224
PAGE = 16  # tokens; of the paged cache
PAGES_OF_A_ROW = COLUMNS // PAGE


@dataclass
class Request:
    """A sequence and the events that it emitted."""

    sequence: Sequence
    events: list[Event] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.sequence.tokens

    @property
    def end(self) -> Event | None:
        return self.events[-1] if self.events and not isinstance(self.events[-1], Delta) else None


class RequestFactory:
    """A small checkpoint and prompts of many kinds."""

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        tiny.make(path, seed=7, dtype="float32")
        self.path = path
        self.checkpoint = checkpoint = load(path, EngineSettings(dtype="float32", device=device), lambda *_: None)
        self.prompt_builder = PromptBuilder(checkpoint.processor, checkpoint.model, COLUMNS - 1)
        self.vision = VisionEncoder(checkpoint.model, cache_bytes=1 << 20)
        self.prompts = [self.prompt(content) for content in CONTENTS]

    @cached_property
    def expected(self) -> list[list[int]]:
        """The output of transformers' `generate` for each prompt."""
        from transformers import Glm4vForConditionalGeneration

        reference = Glm4vForConditionalGeneration.from_pretrained(self.path, dtype=torch.float32).eval()
        return [self._generate(reference, content) for content in CONTENTS]

    def prompt(self, content: Any) -> Prompt:
        return self.prompt_builder.build([{"role": "user", "content": content}], None)

    def core(
        self, *, rows: int = 4, chunk: int = 512, pad: bool = False, pages: int = 0, lookahead: bool = False
    ) -> Core:
        """An engine with a slot cache, or, with `pages`, one of that many pages of PAGE tokens."""
        model = self.checkpoint.model
        cache: SlotCache | PagedCache = SlotCache(model, Budget(rows, COLUMNS))
        if pages:
            cache = PagedCache(model, Budget(rows, COLUMNS, pages * PAGE), page=PAGE, attention=kernel)
        return self.core_of(Runner(model, cache, pad=pad), chunk=chunk, lookahead=lookahead)

    def core_of(self, runner: Runner, *, chunk: int = 512, lookahead: bool = False) -> Core:
        return Core(runner, self.checkpoint.processor.token_bytes, pace=Pace(chunk), lookahead=lookahead)

    def request(
        self, number: int, *, max_tokens: int = MAX_TOKENS, sampling: Sampling | None = None, **more: Any
    ) -> Request:
        prompt = self.prompts[number]
        sampling = sampling or Sampling(temperature=0)
        detokenizer = Detokenizer(self.checkpoint.processor.text)
        request = Request(
            Sequence(
                prompt,
                SamplingParams.resolve(
                    sampling,
                    self.checkpoint.generation_config,
                    vocabulary=self.checkpoint.model.config.text_config.vocab_size,
                    end=self.checkpoint.end_tokens,
                ),
                OutputProcessor(detokenizer, StopStrings(sampling.stop), self.checkpoint.end_tokens),
                max_tokens,
                features=self.vision.features(prompt.images),
                **more,
            )
        )
        request.sequence.emit = request.events.append
        return request

    def _generate(self, reference: Any, content: Any) -> list[int]:
        inputs = self.checkpoint.processor.inputs([{"role": "user", "content": content}], None)
        ids = reference.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)
        return list(ids[0, inputs["input_ids"].shape[1] :].tolist())


def _contents() -> list[Any]:
    """Texts of 1 to 90 words; images small, large, wide, two in one prompt, and one that occurs in two prompts."""
    words = ["red", "blue", "sun", "moon", "tree", "house", "river", "stone", "bird", "cloud"]
    texts = [" ".join(words[(7 * n + k) % 10] for k in range(count)) for n, count in enumerate((1, 5, 17, 40, 90))]
    first = _image((60, 60), "red")
    images = [[first], [_image((180, 70), "blue")], [_image((90, 140), "green"), first], [first]]
    return [
        *texts,
        *(
            [{"type": "image", "image": image} for image in several] + [{"type": "text", "text": texts[n]}]
            for n, several in enumerate(images)
        ),
    ]


def _image(size: tuple[int, int], color: str) -> Image.Image:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((5, 5, size[0] - 9, size[1] - 20), fill=color)
    return image


CONTENTS = _contents()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: small tensors are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run(core: Core, steps: int = 2000) -> None:
    """Step until nothing runs or waits."""
    for _ in range(steps):
        if not core.step():
            return
    raise AssertionError(f"the engine is still busy after {steps} steps")
