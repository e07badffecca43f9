"""What is checked of a conversation before it is rendered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from service.engine import prompt_size
from service.engine.protocol import Conversation, PromptTooLong, Refused
from service.engine.token_counter import TokenCounter

if TYPE_CHECKING:
    from service.model.processor import Processor

__all__ = ["PromptChecks"]


class PromptChecks:
    """Checks for prompts of at most `max_tokens` tokens. Calls may run concurrently in several threads."""

    def __init__(self, processor: Processor, max_tokens: int) -> None:
        self._processor = processor
        self._counter = TokenCounter(processor.tokenizer)
        self._max_tokens = max_tokens
        self._control_tokens = [str(token) for token in processor.tokenizer.get_added_vocab()]

    def check(self, messages: Conversation, tools: Sequence[dict[str, Any]]) -> None:
        """Raise PromptTooLong, or Refused for names that would become control tokens."""
        self.check_size(messages, tools)
        if prompt_size.characters([messages, tools], prompt_size.LONG) > prompt_size.LONG:
            self._check_text(messages, tools)
        if not isinstance(messages, str):
            self._check_names([message.get("tool_calls") for message in messages], "messages")
            self._check_names(tools, "tools")

    def check_size(self, messages: Conversation, tools: Sequence[dict[str, Any]]) -> int:
        """See Engine."""
        tokens = prompt_size.estimate(messages, tools, self._processor.image_tokens, self._max_tokens)
        if tokens > self._max_tokens:
            raise PromptTooLong.estimated(tokens, self._max_tokens)
        return tokens

    def close(self) -> None:
        """End the processes that count tokens."""
        self._counter.close()

    def _check_text(self, messages: Conversation, tools: Sequence[dict[str, Any]]) -> None:
        """Raise PromptTooLong if the texts alone have too many tokens."""
        tokens = self._counter.count([*prompt_size.texts(messages, tools)])
        if tokens > self._max_tokens:
            raise PromptTooLong.estimated(tokens, self._max_tokens)

    def _check_names(self, value: Any, param: str) -> None:
        """Refuse object keys that contain a control token: the template sanitizer handles values only."""
        if isinstance(value, dict):
            for name in value:
                if any(token in name for token in self._control_tokens):
                    raise Refused(f"the name {name[:80]!r} contains a control token of the model", param)
        if isinstance(value, dict | list | tuple):
            for inner in value.values() if isinstance(value, dict) else value:
                self._check_names(inner, param)
