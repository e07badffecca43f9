"""The `smolagents` package."""

from __future__ import annotations

from typing import Any

from cells import COUNT, DONE, HELLO, KEY, MODEL, PAINT, PICTURE, SKILLS, URL, WHAT, Answer, Shape, call, main, streamed
from PIL import Image
from smolagents import OpenAIModel, Tool
from smolagents.models import ChatMessage, agglomerate_stream_deltas

model = OpenAIModel(MODEL, api_base=URL, api_key=KEY, temperature=0)


class Paint(Tool):
    """Paint a shape."""

    name = "paint"
    description = "Paint a shape."
    inputs: dict[str, Any] = {  # noqa: RUF012  (as the package demands)
        "colour": {"type": "string", "description": "the colour", "enum": ["red", "blue"]},
        "size": {"type": "integer", "description": "the size", "enum": [1, 2, 3]},
        "filled": {"type": "boolean", "description": "whether it is filled"},
    }
    output_type = "string"

    def forward(self, colour: str, size: int, filled: bool) -> str:
        """Paint it."""
        return DONE


TOOL = Paint()


def said(content: Any, role: str = "user") -> dict[str, Any]:
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return {"role": role, "content": parts}


def text() -> Answer:
    return {"text": model([said(HELLO)]).content}


def stream() -> Answer:
    return streamed([delta.content or "" for delta in model.generate_stream([said(COUNT)])])


def picture() -> Answer:
    with Image.open(PICTURE) as image:
        return {"text": model([said([{"type": "image", "image": image}, {"type": "text", "text": WHAT}])]).content}


def tools() -> Answer:
    def ask(*messages: dict[str, Any]) -> Any:
        return model(list(messages), tools_to_call_from=[TOOL], tool_choice="auto").content

    # the package writes calls and their results as text
    earlier = [said("Calling tools: paint", "tool-call"), said(f"Observation: {DONE}", "tool-response")]
    return {"before": ask(said(SKILLS)), "after": ask(said(SKILLS), *earlier)}


def made(message: ChatMessage) -> Answer:
    [one, *_] = message.tool_calls or []
    return {"call": call(one.function.name, one.function.arguments)}


def forced(**more: Any) -> Answer:
    return made(model([said(PAINT)], tools_to_call_from=[TOOL], **more))


def streamed_call() -> Answer:
    deltas = model.generate_stream([said(PAINT)], tools_to_call_from=[TOOL])
    return made(agglomerate_stream_deltas(list(deltas)))


def schema(**more: Any) -> Answer:
    json_schema = {"name": "shape", "schema": Shape.model_json_schema(), "strict": True}
    message = model([said(PAINT)], response_format={"type": "json_schema", "json_schema": json_schema}, **more)
    if message.tool_calls:
        return made(message)
    return {"document": Shape.model_validate_json(message.content).model_dump()}


main(
    text=text,
    stream=stream,
    picture=picture,
    tools=tools,
    required=forced,
    named=lambda: forced(tool_choice={"type": "function", "function": {"name": "paint"}}),
    streamed_call=streamed_call,
    schema=schema,
    schema_with_tools=lambda: schema(tools_to_call_from=[TOOL], tool_choice="auto"),
)
