"""Prompts for vLLM: token ids as this program's processor renders them, and the pictures beside them.

vLLM puts the tokens of a picture in the place of its one token, and prepares its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError

from service.engine.prompt_checks import PromptChecks
from service.engine.protocol import Conversation, PromptTooLong, Refused

if TYPE_CHECKING:
    from PIL.Image import Image

    from service.model.processor import Processor

__all__ = ["Prompt", "Prompts"]


@dataclass(frozen=True)
class Prompt:
    """What vLLM is given of a conversation."""

    ids: list[int]  # with one token for each picture
    images: tuple[Image, ...]
    length: int  # in tokens, with all of those of the pictures
    may_think: bool = False  # it does not end with a closed <think> block
    think_open: bool = False  # it ends inside a <think> block, so that the output will not contain the opening tag

    def then(self, output: Sequence[int]) -> dict[str, Any]:
        """Return vLLM's prompt, with the tokens of the output so far."""
        document: dict[str, Any] = {"prompt_token_ids": [*self.ids, *output]}
        if self.images:
            document["multi_modal_data"] = {"image": list(self.images)}
        return document


class Prompts(PromptChecks):
    """Renders prompts of at most `max_tokens` tokens. Calls may run concurrently in several threads."""

    def __init__(self, processor: Processor, max_tokens: int) -> None:
        super().__init__(processor, max_tokens)
        self._think = processor.tokenizer.convert_tokens_to_ids("<think>")
        self._end_think = processor.tokenizer.convert_tokens_to_ids("</think>")

    def build(self, messages: Conversation, thinking: bool | None, tools: Sequence[dict[str, Any]] = ()) -> Prompt:
        """Return the prompt; raises Refused, and PromptTooLong, before tokenization if an estimate is too long."""
        self.check(messages, tools)
        if isinstance(messages, str):
            return self._build_text(messages)
        try:
            ids = self._processor.unexpanded_ids(messages, thinking, tools)
        except TemplateSyntaxError:
            raise  # an error of the release, not of the request
        except TemplateError as error:  # raised by the template itself for conversations that it rejects
            raise Refused(f"the chat template cannot render the conversation: {error}") from error
        images = tuple(_images(messages))
        if ids.count(self._processor.image_token_id) != len(images):
            raise Refused("the chat template of the model renders not each image of the conversation once")
        length = self._require(len(ids) - len(images) + self._processor.image_tokens(image.size for image in images))
        last = ids[-4:]
        return Prompt(
            ids,
            images,
            length,
            may_think=self._end_think not in last,
            think_open=self._think in last and self._end_think not in last,
        )

    def _build_text(self, text: str) -> Prompt:
        """Return the prompt of a text as it is."""
        try:
            ids: list[int] = self._processor.text_ids(text)[0].tolist()
        except ValueError as error:
            raise Refused(str(error)) from None
        if not ids:
            raise Refused("the prompt is empty")
        return Prompt(ids, (), self._require(len(ids)))

    def _require(self, tokens: int) -> int:
        if tokens > self._max_tokens:
            raise PromptTooLong(tokens, self._max_tokens)
        return tokens


def _images(messages: Sequence[dict[str, Any]]) -> list[Image]:
    from PIL import Image

    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [Image.fromarray(np.asarray(part["image"])) for part in parts if "image" in part]
