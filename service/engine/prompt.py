"""A conversation made ready for the model: rendered, tokenized, its pictures turned into patches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from service.engine.protocol import PromptTooLong, Refused

if TYPE_CHECKING:
    from service.model.processor import Processor

__all__ = ["Picture", "Prompt", "Writer"]


class Forged(Refused):
    """A name in the request spells a control token."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Picture:
    """One image of a prompt. Equal pictures have equal digests, whoever sent them."""

    digest: bytes
    pixels: Any  # float tensor (patches, channels * patch volume), on the CPU
    grid: Any  # long tensor (1, 3): time, height and width in patches
    tokens: int


@dataclass(frozen=True)
class Prompt:
    """What the model is given before its answer begins."""

    ids: Any  # long tensor (tokens,)
    positions: Any  # long tensor (3, tokens): time, height, width
    delta: int  # of the position that follows: index + delta, on all three axes
    is_image: Any  # bool tensor (tokens,)
    pictures: tuple[Picture, ...]
    thinking: bool  # whether a thought may still come: it is not closed already
    opened: bool  # whether it was begun, so that the answer will not say where it begins
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", int(self.ids.shape[0]))


class Writer:
    """Writes prompts. Its calls are independent of each other and may run in several threads."""

    def __init__(self, processor: Processor, model: Any, max_tokens: int) -> None:
        self._processor = processor
        self._rope_index = model.model.get_rope_index
        self._max_tokens = max_tokens
        self._longest_token = max(map(len, processor.tokenizer.get_vocab()))
        self._control_tokens = [str(token) for token in processor.tokenizer.get_added_vocab()]
        self._thought = processor.tokenizer.convert_tokens_to_ids("<think>")
        self._end_of_thought = processor.tokenizer.convert_tokens_to_ids("</think>")

    def write(
        self, messages: list[dict[str, Any]], thinking: bool | None, tools: Sequence[dict[str, Any]] = ()
    ) -> Prompt:
        """Make the prompt; raises PromptTooLong, early for what is surely too long, and Refused."""
        self._check_size(messages)
        self._check_names([message.get("tool_calls") for message in messages], "messages")
        self._check_names(tools, "tools")
        try:
            inputs = self._processor.inputs(messages, thinking, tools)
        except TemplateSyntaxError:
            raise  # the release's fault
        except TemplateError as error:  # templates have rules of their own
            raise Refused(f"the chat template cannot render the conversation: {error}") from error
        ids = inputs["input_ids"]
        if ids.shape[1] > self._max_tokens:
            raise self._too_long(int(ids.shape[1]))
        kinds, grids = inputs["mm_token_type_ids"], inputs.get("image_grid_thw")
        positions, delta = self._rope_index(ids, kinds, image_grid_thw=grids)
        last = ids[0, -4:].tolist()
        return Prompt(
            ids[0],
            positions[:, 0],
            int(delta[0, 0]),
            kinds[0] == 1,
            tuple(_pictures(messages, inputs, self._processor.image_processor.merge_size)),
            thinking=self._end_of_thought not in last,
            opened=self._thought in last and self._end_of_thought not in last,
        )

    def _check_size(self, messages: list[dict[str, Any]]) -> None:
        parts = [part for message in messages for part in _parts(message.get("content"))]
        images = self._processor.image_tokens(part["image"].size for part in parts if part["type"] == "image")
        text = sum(len(part["text"]) for part in parts if part["type"] == "text") // self._longest_token
        if images + text > self._max_tokens:
            raise self._too_long(images + text, " or more")

    def _check_names(self, value: Any, param: str) -> None:
        """Refuse names that spell a control token: the template's sanitizer makes text of values alone."""
        if isinstance(value, dict):
            for name in value:
                if any(token in name for token in self._control_tokens):
                    raise Forged(f"the name {name[:80]!r} spells a control token of the model", param)
        if isinstance(value, dict | list | tuple):
            for inner in value.values() if isinstance(value, dict) else value:
                self._check_names(inner, param)

    def _too_long(self, tokens: int, more: str = "") -> PromptTooLong:
        return PromptTooLong(
            f"the conversation has {tokens} tokens{more}, images included; at most {self._max_tokens} are allowed"
        )


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or []


def _pictures(messages: list[dict[str, Any]], inputs: Any, merge: int) -> list[Picture]:
    """Take the patches of all images apart again, so that each is known by itself."""
    images = [part["image"] for message in messages for part in _parts(message.get("content")) if "image" in part]
    if not images:
        return []
    grids = inputs["image_grid_thw"]
    patches = grids.prod(-1).tolist()
    return [
        # of the image rather than of its patches, which are eight times as many bytes
        Picture(
            hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest(), part, grid[None], count // merge**2
        )
        for image, part, grid, count in zip(images, inputs["pixel_values"].split(patches), grids, patches, strict=True)
    ]
