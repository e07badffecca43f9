"""The GLM-4.6V processor for text and images, without torchvision.

Importing this module imports transformers. transformers loads every sub-processor that the constructor names, and its
video processors need torchvision, which has no CPU build; a constructor without a video processor avoids that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.glm46v.processing_glm46v import Glm46VProcessor
from transformers.processing_utils import ProcessorMixin

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BatchFeature, PreTrainedTokenizerFast
    from transformers.image_processing_utils import BaseImageProcessor

__all__ = ["Processor"]

_BOX_TOKENS = ("<|begin_of_box|>", "<|end_of_box|>")
_BYTES = {character: value for value, character in bytes_to_unicode().items()}  # of a byte-level vocabulary


class Processor(Glm46VProcessor):  # type: ignore[misc]  # transformers is untyped
    """Converts conversations to model inputs and tokens to text; videos are not supported."""

    def __init__(
        self,
        image_processor: BaseImageProcessor = None,
        tokenizer: PreTrainedTokenizerFast = None,
        chat_template: str | None = None,
        **_unused: Any,  # video settings of a saved processor_config.json
    ) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_token, self.video_token = "<|image|>", "<|video|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        self.video_start_id = tokenizer.convert_tokens_to_ids("<|begin_of_video|>")
        self.video_end_id = tokenizer.convert_tokens_to_ids("<|end_of_video|>")
        # By default only special tokens and those in the template's source are control tokens. Added tokens that the
        # template does not contain, such as <tool_call> in some, must not be accepted from users either.
        tokenizer.chat_control_tokens = list(tokenizer.get_added_vocab())
        self._hidden_tokens = set(tokenizer.all_special_ids) - set(tokenizer.convert_tokens_to_ids(list(_BOX_TOKENS)))

    @classmethod
    def read(cls, model: Path) -> Processor:
        """Load from a checkpoint directory; raises what transformers raises, mostly OSError and ValueError."""
        processor: Processor = cls.from_pretrained(model, local_files_only=True)
        return processor

    def image_tokens(self, sizes: Iterable[tuple[int, int]]) -> int:
        """Return the number of prompt tokens of images of these sizes, (width, height) in pixels, without decoding."""
        patches = sum(self.image_processor.get_number_of_image_patches(height, width) for width, height in sizes)
        return int(patches) // int(self.image_processor.merge_size) ** 2

    def inputs(
        self, messages: list[dict[str, Any]], thinking: bool | None, tools: Sequence[dict[str, Any]] = ()
    ) -> BatchFeature:
        """Return the model inputs: `input_ids`, `attention_mask` (1, tokens), and `pixel_values` if there are images.

        Control tokens in the text of messages and tool definitions, such as `<|assistant|>` or `<|image|>`, are encoded
        as plain text.
        """
        variables = {} if thinking is None else {"enable_thinking": thinking}
        return self.apply_chat_template(
            messages,
            tools=list(tools) or None,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            sanitize_control_tokens=True,
            **variables,
        )

    def unexpanded_ids(
        self, messages: list[dict[str, Any]], thinking: bool | None, tools: Sequence[dict[str, Any]] = ()
    ) -> list[int]:
        """Return the `input_ids` of `inputs`, but one token for each image, whose pixels are not read."""
        variables = {} if thinking is None else {"enable_thinking": thinking}
        ids: list[int] = self.tokenizer.apply_chat_template(
            messages,
            chat_template=self.chat_template,
            tools=list(tools) or None,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
            sanitize_control_tokens=True,
            **variables,
        )
        return ids

    def text_ids(self, text: str) -> Tensor:
        """Return the tokens (1, tokens) of a prompt as it is, in which control tokens are what they say.

        Raises ValueError if there are some of images or videos, which such a prompt cannot have.
        """
        ids: Tensor = self.tokenizer(text, return_tensors="pt")["input_ids"]
        found = {self.image_token_id, self.video_token_id}.intersection(ids[0].tolist())
        if found:
            token = self.tokenizer.convert_ids_to_tokens(found.pop())
            raise ValueError(f"the prompt contains {token}; images are sent in the messages of a chat request")
        return ids

    def text(self, tokens: list[int]) -> str:
        """Decode tokens; special tokens are omitted, except those around the final answer."""
        visible = [token for token in tokens if token not in self._hidden_tokens]
        # The tokenizer's own decode takes several times as long, for checks of its arguments.
        return str(self.tokenizer.backend_tokenizer.decode(visible, skip_special_tokens=False))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, which may end inside a character."""
        if token in self.tokenizer.added_tokens_decoder:
            return str(self.tokenizer.added_tokens_decoder[token].content).encode()
        # None for ids beyond the vocabulary: the model's output layer can be larger
        text = self.tokenizer.convert_ids_to_tokens(token) or ""
        return bytes(_BYTES[character] for character in text if character in _BYTES)
