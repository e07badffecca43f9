"""The `llama-index-llms-openai-like` package."""

from __future__ import annotations

from typing import Any

from cells import (
    CALL,
    COUNT,
    DONE,
    HELLO,
    KEY,
    MODEL,
    PAINT,
    PICTURE,
    SKILLS,
    URL,
    WHAT,
    Answer,
    Shape,
    call,
    main,
    streamed,
)
from cells import paint as painted
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ToolCallBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(
    MODEL,
    api_base=URL,
    api_key=KEY,
    temperature=0,
    max_retries=0,
    is_chat_model=True,
    is_function_calling_model=True,
    should_use_structured_outputs=True,
)
TOOL = FunctionTool.from_defaults(painted, name="paint")


def text() -> Answer:
    return {"text": model.complete(HELLO).text}


def stream() -> Answer:
    return streamed([chunk.delta or "" for chunk in model.stream_chat([ChatMessage(COUNT)])])


def picture() -> Answer:
    return {"text": model.chat([ChatMessage(blocks=[ImageBlock(path=PICTURE), TextBlock(text=WHAT)])]).message.content}


def tools() -> Answer:
    earlier = ToolCallBlock(tool_call_id="call_1", tool_name="paint", tool_kwargs=CALL)
    result = ChatMessage(DONE, role="tool", additional_kwargs={"tool_call_id": "call_1"})
    before = model.chat_with_tools([TOOL], SKILLS)
    after = model.chat_with_tools(
        [TOOL], chat_history=[ChatMessage(SKILLS), ChatMessage(role="assistant", blocks=[earlier]), result]
    )
    return {"before": before.message.content or "", "after": after.message.content or ""}


def made(response: Any) -> Answer:
    [first, *_] = model.get_tool_calls_from_response(response)
    return {"call": call(first.tool_name, first.tool_kwargs)}


def streamed_call() -> Answer:
    *_, last = model.stream_chat_with_tools([TOOL], PAINT, tool_choice="paint")
    return made(last)


def schema() -> Answer:
    return {"document": model.as_structured_llm(Shape).complete(PAINT).raw.model_dump()}


main(
    text=text,
    stream=stream,
    picture=picture,
    tools=tools,
    required=lambda: made(model.chat_with_tools([TOOL], PAINT, tool_required=True)),
    named=lambda: made(model.chat_with_tools([TOOL], PAINT, tool_choice="paint")),
    streamed_call=streamed_call,
    schema=schema,
)
