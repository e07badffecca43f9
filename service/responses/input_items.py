"""The items of a request's `input`, and their conversion to messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from service.chat.messages import Arguments, FunctionCall, ImagePart, Message, MessageToolCall, TextPart
from service.chat.request_model import Dropped, Items, RequestModel, Unsupported

__all__ = ["InputItem", "messages_of"]

ITEMS = "message, function_call, function_call_output and reasoning"
PARTS = "input_text, input_image, output_text and refusal"


class Item(RequestModel):
    """Base of items: what the items of a response have, and what means nothing in a request."""

    id: Dropped = None
    status: Dropped = None


class InputText(RequestModel):
    """A text; an answer's is `output_text`, with fields that mean nothing here."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Dropped = None
    logprobs: Dropped = None

    def part(self) -> TextPart:
        """Return the part of a message."""
        return TextPart(type="text", text=self.text)


class Refusal(RequestModel):
    """A refusal in an earlier answer."""

    type: Literal["refusal"]
    refusal: str

    def part(self) -> TextPart:
        """Return the part of a message."""
        return TextPart(type="text", text=self.refusal)


class InputImage(RequestModel):
    """An image."""

    type: Literal["input_image"]
    image_url: str = Field(description="data:image/…;base64,… or an https URL of a host that the settings allow")
    detail: Literal["auto", "low", "high"] | None = None
    file_id: Unsupported = None

    def part(self) -> ImagePart:
        """Return the part of a message."""
        return ImagePart.model_validate(
            {"type": "image_url", "image_url": {"url": self.image_url, "detail": self.detail}}
        )


def _type_of_part(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "input_text" if kind == "output_text" else kind if isinstance(kind, str) else None


Part = Annotated[
    Annotated[InputText, Tag("input_text")]
    | Annotated[Refusal, Tag("refusal")]
    | Annotated[InputImage, Tag("input_image")],
    Discriminator(
        _type_of_part, custom_error_type="part_type", custom_error_message=f"parts of types {PARTS} are supported"
    ),
]


def _wrap_text(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


Content = Annotated[Items[Part], BeforeValidator(_wrap_text, json_schema_input_type=list[Part] | str)]


class MessageItem(Item):
    """A message; `type` may be missing."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    phase: Dropped = None


class FunctionCallItem(Item):
    """A call that the model has made."""

    type: Literal["function_call"]
    call_id: str
    name: str = Field(min_length=1)
    arguments: Arguments


class FunctionCallOutputItem(Item):
    """What a call has returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ReasoningText(RequestModel):
    """A piece of reasoning, or of its summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Item):
    """The reasoning before an answer."""

    type: Literal["reasoning"]
    summary: Items[ReasoningText] = Field(default_factory=list)
    content: Items[ReasoningText] | None = None
    encrypted_content: Dropped = None

    @property
    def text(self) -> str:
        """The reasoning itself, or what there is of it."""
        return "".join(part.text for part in self.content or self.summary)


def _type_of_item(value: Any) -> str | None:
    if not isinstance(value, dict):
        return getattr(value, "type", None)
    kind = value.get("type")
    return kind if isinstance(kind, str) else "message" if kind is None and "role" in value else None


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _type_of_item,
        custom_error_type="item_type",
        custom_error_message=f"items of types {ITEMS} are supported; nothing is stored here that others could refer to",
    ),
]


@dataclass
class _Turn:
    """What the assistant has said and called until somebody else follows."""

    path: str
    reasoning: list[str] = field(default_factory=list)
    parts: list[TextPart | ImagePart] = field(default_factory=list)
    calls: list[MessageToolCall] = field(default_factory=list)

    def message(self) -> Message:
        reasoning = "".join(self.reasoning) if self.reasoning else None
        calls = self.calls or None
        return _message("assistant", self.parts or None, reasoning_content=reasoning, tool_calls=calls)


def messages_of(items: Sequence[Any], field: str = "input") -> Iterator[tuple[str, Message]]:
    """Yield the messages that input items make up, each with the path of its first item.

    Reasoning, text and calls of the assistant that follow each other in this order are one message.
    """
    turn: _Turn | None = None
    for index, item in enumerate(items):
        path = f"{field}[{index}]"
        if turn and _begins_turn(turn, item):
            yield turn.path, turn.message()
            turn = None
        if isinstance(item, FunctionCallOutputItem):
            yield path, _message("tool", _parts(item.output), tool_call_id=item.call_id)
        elif isinstance(item, MessageItem) and item.role != "assistant":
            yield path, _message(item.role, _parts(item.content))
        else:
            turn = turn or _Turn(path)
            _add(turn, item)
    if turn:
        yield turn.path, turn.message()


def _begins_turn(turn: _Turn, item: Any) -> bool:
    """Whether an item cannot be part of the assistant's message."""
    if isinstance(item, ReasoningItem):
        return bool(turn.parts or turn.calls)
    if isinstance(item, MessageItem) and item.role == "assistant":
        return bool(turn.calls)
    return not isinstance(item, FunctionCallItem)


def _add(turn: _Turn, item: Any) -> None:
    if isinstance(item, ReasoningItem):
        turn.reasoning.append(item.text)
    elif isinstance(item, MessageItem):
        turn.parts += _parts(item.content)
    else:
        function = FunctionCall.model_construct(name=item.name, arguments=item.arguments)
        turn.calls.append(MessageToolCall.model_construct(id=item.call_id, type="function", function=function))


def _parts(content: Sequence[Any]) -> list[TextPart | ImagePart]:
    return [part.part() for part in content]


def _message(role: Any, content: list[TextPart | ImagePart] | None, **more: Any) -> Message:
    """Return a message of what was validated before."""
    return Message.model_construct(role=role, content=content, **more)
