"""The `openai` package: helpers that tests/test_openai_client.py does not call."""

from __future__ import annotations

import json
from typing import Any

import openai
from cells import CALL, COUNT, DONE, HELLO, MODEL, PAINT, PICTURE_URL, SKILLS, WHAT, Answer, Shape, call, main, streamed
from openai import OpenAI

client = OpenAI(max_retries=0)
TOOL = openai.pydantic_function_tool(Shape, name="paint", description="Paint a shape.")
NAMED: Any = {"type": "function", "function": {"name": "paint"}}


def ask(content: Any, **more: Any) -> Any:
    messages = content if isinstance(content, list) and "role" in content[0] else [{"role": "user", "content": content}]
    return client.chat.completions.create(model=MODEL, messages=messages, temperature=0, **more)


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
            {"role": "assistant", "tool_calls": [earlier]},
            {"role": "tool", "tool_call_id": "call_1", "content": DONE},
        ],
        tools=[TOOL],
    )
    return {"before": before.choices[0].message.content, "after": after.choices[0].message.content}


def forced(choice: Any) -> Answer:
    [made, *_] = ask(PAINT, tools=[TOOL], tool_choice=choice).choices[0].message.tool_calls
    return {"call": call(made.function.name, made.function.arguments)}


def streamed_call() -> Answer:
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": PAINT}], tools=[TOOL], tool_choice=NAMED, temperature=0
    ) as events:
        for _ in events:
            pass
        [made, *_] = events.get_final_completion().choices[0].message.tool_calls or []
    assert isinstance(made.function.parsed_arguments, Shape)
    return {"call": call(made.function.name, made.function.parsed_arguments.model_dump())}


def parse(**more: Any) -> Answer:
    message = (
        client.chat.completions.parse(
            model=MODEL,
            messages=[{"role": "user", "content": PAINT}],
            response_format=Shape,
            temperature=0,
            **more,
        )
        .choices[0]
        .message
    )
    if message.tool_calls:
        return {"call": call(message.tool_calls[0].function.name, message.tool_calls[0].function.arguments)}
    assert message.parsed is not None
    return {"document": message.parsed.model_dump()}


def responses() -> Answer:
    whole = client.responses.create(model=MODEL, input=HELLO, temperature=0).output_text
    pieces = [
        event.delta
        for event in client.responses.create(model=MODEL, input=HELLO, temperature=0, stream=True)
        if event.type == "response.output_text.delta"
    ]
    assert "".join(pieces) == whole
    parsed = client.responses.parse(model=MODEL, input=PAINT, text_format=Shape, temperature=0).output_parsed
    return {"text": whole, "document": parsed.model_dump()}


main(
    text=text,
    stream=stream,
    picture=picture,
    tools=tools,
    required=lambda: forced("required"),
    named=lambda: forced(NAMED),
    streamed_call=streamed_call,
    schema=parse,
    schema_with_tools=lambda: parse(tools=[TOOL], parallel_tool_calls=False),
    responses=responses,
)
