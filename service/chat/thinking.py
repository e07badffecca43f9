"""The fields of a request that turn reasoning on or off; they have one meaning under four names."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from service.chat.request_model import RequestModel

__all__ = ["ThinkingFields"]


class TemplateOptions(RequestModel):
    """Variables of the chat template that a request may set."""

    enable_thinking: bool | None = None


class ThinkingOption(RequestModel):
    """Reasoning, on or off."""

    type: Literal["enabled", "disabled"]


class ThinkingFields(RequestModel):
    """Fields that turn reasoning on or off. Without any of them the chat template decides; a format does not."""

    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        default=None, description="none and minimal turn reasoning off, the others turn it on"
    )
    thinking_: ThinkingOption | None = Field(default=None, alias="thinking")
    include_reasoning: bool | None = Field(default=None, description="turns reasoning on or off")
    chat_template_kwargs: TemplateOptions | None = None

    @model_validator(mode="after")
    def _check_thinking(self) -> ThinkingFields:
        on, off = ([field for field, value in self._wishes().items() if value is wish] for wish in (True, False))
        if on and off:
            fields = {"param": off[0], "other": on[0]}
            raise PydanticCustomError("thinking", "{param} turns reasoning off, and {other} turns it on", fields)
        return self

    @property
    def thinking(self) -> bool | None:
        """Whether reasoning precedes the content; None leaves it to the chat template."""
        return next((value for value in self._wishes().values() if value is not None), None)

    def _wishes(self) -> dict[str, bool | None]:
        options, effort = self.chat_template_kwargs, self.reasoning_effort
        return {
            "chat_template_kwargs.enable_thinking": options.enable_thinking if options else None,
            "thinking": self.thinking_.type == "enabled" if self.thinking_ else None,
            "reasoning_effort": effort not in ("none", "minimal") if effort else None,
            "include_reasoning": self.include_reasoning,
        }
