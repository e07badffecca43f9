"""The `langchain-openai` package."""

from __future__ import annotations

from typing import Any

from cells import (
    CALL,
    COUNT,
    HELLO,
    MODEL,
    PAINT,
    PICTURE_URL,
    SKILLS,
    WHAT,
    Answer,
    Shape,
    call,
    main,
    paint,
    streamed,
)  # fmt: skip
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model=MODEL, temperature=0, max_retries=0)
TOOL = tool(paint)


def text() -> Answer:
    return {"text": model.invoke(HELLO).content}


def stream() -> Answer:
    return streamed([chunk.content for chunk in model.stream(COUNT)])


def picture() -> Answer:
    image = {"type": "image_url", "image_url": {"url": PICTURE_URL}}
    return {"text": model.invoke([HumanMessage([image, {"type": "text", "text": WHAT}])]).content}


def tools() -> Answer:
    bound = model.bind_tools([TOOL])
    earlier = {"id": "call_1", "name": "paint", "args": CALL, "type": "tool_call"}
    after = bound.invoke([HumanMessage(SKILLS), AIMessage("", tool_calls=[earlier]), TOOL.invoke(earlier)])
    return {"before": bound.invoke(SKILLS).content, "after": after.content}


def forced(choice: str) -> Answer:
    bound = model.bind_tools([TOOL], tool_choice=choice)
    [made, *_] = bound.invoke(PAINT).tool_calls
    return {"call": call(made["name"], made["args"])}


def streamed_call() -> Answer:
    whole: AIMessageChunk | None = None
    for chunk in model.bind_tools([TOOL], tool_choice="paint").stream(PAINT):
        whole = chunk if whole is None else whole + chunk
    [made, *_] = whole.tool_calls
    return {"call": call(made["name"], made["args"])}


def schema() -> Answer:
    return {"document": model.with_structured_output(Shape).invoke(PAINT).model_dump()}


def schema_with_tools() -> Answer:
    bound = model.with_structured_output(Shape, tools=[TOOL], include_raw=True, strict=True, parallel_tool_calls=False)
    found: dict[str, Any] = bound.invoke(PAINT)
    if found["raw"].tool_calls:
        return {"call": call(found["raw"].tool_calls[0]["name"], found["raw"].tool_calls[0]["args"])}
    return {"document": found["parsed"].model_dump()}


main(
    text=text,
    stream=stream,
    picture=picture,
    tools=tools,
    required=lambda: forced("any"),
    named=lambda: forced("paint"),
    streamed_call=streamed_call,
    schema=schema,
    schema_with_tools=schema_with_tools,
)
