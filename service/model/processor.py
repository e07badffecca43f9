"""The GLM-4.6V processor for text and images, without torchvision.

Importing this module imports transformers: leave it to the engine's load.

transformers loads every sub-processor that the constructor names, and its video processors need torchvision, of which
there is no CPU build. A constructor that names no video processor is never given one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.glm46v.processing_glm46v import Glm46VProcessor
from transformers.processing_utils import ProcessorMixin

__all__ = ["Processor"]

_FRAMES = ("<|begin_of_box|>", "<|end_of_box|>")
_BYTES = {character: value for value, character in bytes_to_unicode().items()}  # of a byte-level vocabulary


class Processor(Glm46VProcessor):  # type: ignore[misc]  # transformers is untyped
    """Turns a conversation into the model's inputs; videos are not supported."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        **_unused: Any,  # video settings in a saved processor_config.json
    ) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_token, self.video_token = "<|image|>", "<|video|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        self.video_start_id = tokenizer.convert_tokens_to_ids("<|begin_of_video|>")
        self.video_end_id = tokenizer.convert_tokens_to_ids("<|end_of_video|>")
        # By default only what the template spells counts as a control token beside the special ones: one that leaves
        # <tool_call> to the model would let a user write it.
        tokenizer.chat_control_tokens = list(tokenizer.get_added_vocab())
        self._silent = set(tokenizer.all_special_ids) - set(tokenizer.convert_tokens_to_ids(list(_FRAMES)))

    @classmethod
    def read(cls, model: Path) -> Processor:
        """Load from a checkpoint directory; raises what transformers raises, mostly OSError and ValueError."""
        processor: Processor = cls.from_pretrained(model, local_files_only=True)
        return processor

    def image_tokens(self, sizes: Iterable[tuple[int, int]]) -> int:
        """Count the prompt tokens that images of these (width, height) pixels become, without decoding any."""
        patches = sum(self.image_processor.get_number_of_image_patches(height, width) for width, height in sizes)
        return int(patches) // int(self.image_processor.merge_size) ** 2

    def inputs(
        self, messages: list[dict[str, Any]], thinking: bool | None, tools: Sequence[dict[str, Any]] = ()
    ) -> Any:
        """Render, tokenize and patch: `input_ids` and `attention_mask` (1, tokens), and for images `pixel_values`.

        Control tokens that a message's text spells out, `<|assistant|>` or `<|image|>`, become plain text, in the
        definitions of tools too.
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

    def text(self, tokens: list[int]) -> str:
        """Decode tokens, leaving out the special ones but those that frame the answer proper."""
        kept = [token for token in tokens if token not in self._silent]
        # not the tokenizer's own decode, which takes several times as long to find out what it was given
        return str(self.tokenizer.backend_tokenizer.decode(kept, skip_special_tokens=False))

    def spell(self, token: int) -> bytes:
        """Give the bytes of one token, which need not be whole characters."""
        if token in self.tokenizer.added_tokens_decoder:
            return str(self.tokenizer.added_tokens_decoder[token].content).encode()
        text = self.tokenizer.convert_ids_to_tokens(token) or ""  # rows of the head beyond the vocabulary are nothing
        return bytes(_BYTES[character] for character in text if character in _BYTES)
