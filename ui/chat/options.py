"""The settings of a conversation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """What is sent with each question; None leaves a value to the model's release."""

    system: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    thinking: bool | None = None

    def messages(self) -> list[dict[str, Any]]:
        """Return the messages that precede the conversation."""
        return [{"role": "system", "content": self.system}] if self.system.strip() else []

    def fields(self) -> dict[str, Any]:
        """Return the fields of a request, in OpenAI's format."""
        fields: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        if self.thinking is not None:
            fields["chat_template_kwargs"] = {"enable_thinking": self.thinking}
        return {name: value for name, value in fields.items() if value is not None}

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)
