"""The `litellm` package."""

from __future__ import annotations

import json
from typing import Any

import litellm
from cells import (
    CALL,
    COUNT,
    DONE,
    HELLO,
    KEY,
    MODEL,
    PAINT,
    PICTURE_URL,
    SKILLS,
    URL,
    WHAT,
    Answer,
    Shape,
    call,
    main,
    streamed,
)  # fmt: skip

TOOL = {
    "type": "function",
    "function": {"name": "paint", "description": "Paint a shape.", "parameters": Shape.model_json_schema()},
}
NAMED = {"type": "function", "function": {"name": "paint"}}


def ask(content: Any, **more: Any) -> Any:
    messages = content if isinstance(content, list) and "role" in content[0] else [{"role": "user", "content": content}]
    return litellm.completion(
        model=f"openai/{MODEL}", messages=messages, api_base=URL, api_key=KEY, temperature=0, num_retries=0, **more
    )


def text() -> Answer:
    return {"text": ask(HELLO).choices[0].message.content}


def stream() -> Answer:
    return streamed([chunk.choices[0].delta.content or "" for chunk in ask(COUNT, stream=True)])


def picture() -> Answer:
    image = {"type": "image_url", "image_url": {"url": PICTURE_URL}}
    return {"text": ask([image, {"type": "text", "text": WHAT}]).choices[0].message.content}


def tools() -> Answer:
    earlier = {"id": "call_1", "type": "function", "function": {"name": "paint", "arguments": json.dumps(CALL)}}
    before = ask(SKILLS, tools=[TOOL], tool_choice="auto")
    after = ask(
        [
            {"role": "user", "content": SKILLS},
            {"role": "assistant", "content": None, "tool_calls": [earlier]},
            {"role": "tool", "tool_call_id": "call_1", "content": DONE},
        ],
        tools=[TOOL],
    )
    return {"before": before.choices[0].message.content, "after": after.choices[0].message.content}


def forced(choice: Any) -> Answer:
    [made, *_] = ask(PAINT, tools=[TOOL], tool_choice=choice).choices[0].message.tool_calls
    return {"call": call(made.function.name, made.function.arguments)}


def streamed_call() -> Answer:
    whole = litellm.stream_chunk_builder(list(ask(PAINT, tools=[TOOL], tool_choice=NAMED, stream=True)))
    [made, *_] = whole.choices[0].message.tool_calls
    return {"call": call(made.function.name, made.function.arguments)}


def schema(**more: Any) -> Answer:
    message = ask(PAINT, response_format=Shape, **more).choices[0].message
    if message.tool_calls:
        return {"call": call(message.tool_calls[0].function.name, message.tool_calls[0].function.arguments)}
    return {"document": json.loads(message.content)}


main(
    text=text,
    stream=stream,
    picture=picture,
    tools=tools,
    required=lambda: forced("required"),
    named=lambda: forced(NAMED),
    streamed_call=streamed_call,
    schema=schema,
    schema_with_tools=lambda: schema(tools=[TOOL]),
)
