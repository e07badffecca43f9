"""Model inputs of a conversation: rendered by the chat template, tokenized, images split into patches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jinja2 import TemplateError, TemplateSyntaxError
from torch import Tensor

from service.engine.prompt_checks import PromptChecks
from service.engine.protocol import Conversation, PromptTooLong, Refused

if TYPE_CHECKING:
    from transformers import Glm4vForConditionalGeneration

    from service.model.processor import Processor

__all__ = ["Prompt", "PromptBuilder", "PromptImage"]


@dataclass(frozen=True)
class PromptImage:
    """One image of a prompt. Equal images have equal digests."""

    digest: bytes
    pixels: Tensor  # float (patches, channels * patch volume), on the CPU
    grid: Tensor  # long (1, 3): time, height and width in patches
    tokens: int


@dataclass(frozen=True)
class Prompt:
    """The model's input before the first output token."""

    ids: Tensor  # long (tokens,)
    positions: Tensor  # long (3, tokens): time, height, width
    delta: int  # the position of an output token is its index + delta, on all three axes
    is_image: Tensor  # bool (tokens,)
    images: tuple[PromptImage, ...]
    may_think: bool  # the prompt does not end with a closed <think> block
    think_open: bool  # the prompt ends inside a <think> block, so the output will not contain the opening tag
    length: int = field(init=False)  # tokens

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", int(self.ids.shape[0]))

    def without_images(self) -> Prompt:
        """Return the prompt without the patches of its images, 19 kB for each of their tokens."""
        return replace(self, images=()) if self.images else self


class PromptBuilder(PromptChecks):
    """Builds prompts of at most `max_tokens` tokens. Calls may run concurrently in several threads."""

    def __init__(self, processor: Processor, model: Glm4vForConditionalGeneration, max_tokens: int) -> None:
        super().__init__(processor, max_tokens)
        self._get_rope_index = model.model.get_rope_index
        self._think = processor.tokenizer.convert_tokens_to_ids("<think>")
        self._end_think = processor.tokenizer.convert_tokens_to_ids("</think>")

    def build(self, messages: Conversation, thinking: bool | None, tools: Sequence[dict[str, Any]] = ()) -> Prompt:
        """Return the prompt; raises Refused, and PromptTooLong, before tokenization if an estimate is too long."""
        self.check(messages, tools)
        if isinstance(messages, str):
            return self._build_text(messages)
        messages = [_with_arrays(message) for message in messages]
        try:
            inputs = self._processor.inputs(messages, thinking, tools)
        except TemplateSyntaxError:
            raise  # an error of the release, not of the request
        except TemplateError as error:  # raised by the template itself for conversations that it rejects
            raise Refused(f"the chat template cannot render the conversation: {error}") from error
        ids = inputs["input_ids"]
        if ids.shape[1] > self._max_tokens:
            raise PromptTooLong(int(ids.shape[1]), self._max_tokens)
        token_types, grids = inputs["mm_token_type_ids"], inputs.get("image_grid_thw")
        positions, delta = self._get_rope_index(ids, token_types, image_grid_thw=grids)
        last = ids[0, -4:].tolist()
        return Prompt(
            ids[0],
            positions[:, 0],
            int(delta[0, 0]),
            token_types[0] == 1,
            tuple(_split_images(messages, inputs, self._processor.image_processor.merge_size)),
            may_think=self._end_think not in last,
            think_open=self._think in last and self._end_think not in last,
        )

    def _build_text(self, text: str) -> Prompt:
        """Return the prompt of a text as it is."""
        try:
            ids = self._processor.text_ids(text)
        except ValueError as error:
            raise Refused(str(error)) from None
        length = int(ids.shape[1])
        if length > self._max_tokens:
            raise PromptTooLong(length, self._max_tokens)
        if not length:
            raise Refused("the prompt is empty")
        token_types = torch.zeros_like(ids)
        positions, delta = self._get_rope_index(ids, token_types)
        return Prompt(
            ids[0], positions[:, 0], int(delta[0, 0]), token_types[0] == 1, (), may_think=False, think_open=False
        )


def _parts(content: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or []


def _with_arrays(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with NumPy arrays for its images, uint8 (height, width, 3)."""
    if not isinstance(message["content"], list):
        return message
    parts = [
        {**part, "image": np.asarray(part["image"])} if part["type"] == "image" else part for part in message["content"]
    ]
    return {**message, "content": parts}


def _split_images(messages: list[dict[str, Any]], inputs: Mapping[str, Tensor], merge: int) -> list[PromptImage]:
    """Split the patches of all images into one PromptImage each; `merge`² patches become one token."""
    images = [part["image"] for message in messages for part in _parts(message.get("content")) if "image" in part]
    if not images:
        return []
    grids = inputs["image_grid_thw"]
    patches: list[int] = grids.prod(-1).tolist()
    return [
        # The digest is of the image: its patches are eight times as many bytes.
        PromptImage(
            hashlib.sha256(np.ascontiguousarray(image).data).digest() + str(image.shape).encode(),
            part,
            grid[None],
            count // merge**2,
        )
        for image, part, grid, count in zip(
            images, torch.split(inputs["pixel_values"], patches), grids, patches, strict=True
        )
    ]
