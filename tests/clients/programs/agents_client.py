"""The `openai-agents` package, on chat completions and on responses."""

from __future__ import annotations

from typing import Any

import agents
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    StopAtTools,
    function_tool,
)  # fmt: skip
from cells import COUNT, HELLO, MODEL, PAINT, PICTURE_URL, SKILLS, WHAT, Answer, Shape, call, main, paint, streamed
from openai import AsyncOpenAI
from openai.types.responses import ResponseFunctionToolCall, ResponseTextDeltaEvent

agents.set_tracing_disabled(True)  # traces go to api.openai.com
TOOL = function_tool(paint)


def agent(choice: str | None = None, *, once: bool = False, model: Any = None, **more: Any) -> Agent[None]:
    """Make an agent; `once`: it ends with its first call."""
    return Agent(
        name="painter",
        model=(model or OpenAIChatCompletionsModel)(MODEL, AsyncOpenAI(max_retries=0)),
        model_settings=ModelSettings(temperature=0, tool_choice=choice),
        tool_use_behavior=StopAtTools(stop_at_tool_names=["paint"]) if once else "run_llm_again",
        **more,
    )


def calls(items: Any) -> list[ResponseFunctionToolCall]:
    return [item.raw_item for item in items if isinstance(item, agents.ToolCallItem)]


async def text() -> Answer:
    return {"text": (await Runner.run(agent(), HELLO)).final_output}


async def stream() -> Answer:
    run = Runner.run_streamed(agent(), COUNT)
    return streamed(
        [
            event.data.delta
            async for event in run.stream_events()
            if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
        ]
    )


async def picture() -> Answer:
    image = {"type": "input_image", "image_url": PICTURE_URL, "detail": "auto"}
    content: Any = [image, {"type": "input_text", "text": WHAT}]
    return {"text": (await Runner.run(agent(), [{"role": "user", "content": content}])).final_output}


async def tools() -> Answer:
    before = await Runner.run(agent("auto", tools=[TOOL]), SKILLS)
    after = await Runner.run(agent("required", tools=[TOOL]), SKILLS)  # the choice is reset after the call
    assert calls(after.new_items)
    return {"before": before.final_output, "after": after.final_output}


async def forced(choice: str) -> Answer:
    [made, *_] = calls((await Runner.run(agent(choice, once=True, tools=[TOOL]), PAINT)).new_items)
    return {"call": call(made.name, made.arguments)}


async def streamed_call() -> Answer:
    run = Runner.run_streamed(agent("paint", once=True, tools=[TOOL]), PAINT)
    async for _ in run.stream_events():
        pass
    [made, *_] = calls(run.new_items)
    return {"call": call(made.name, made.arguments)}


async def schema() -> Answer:
    return {"document": (await Runner.run(agent(output_type=Shape), PAINT)).final_output.model_dump()}


async def schema_with_tools() -> Answer:
    run = await Runner.run(agent("auto", once=True, tools=[TOOL], output_type=Shape), PAINT)
    for made in calls(run.new_items):
        return {"call": call(made.name, made.arguments)}
    return {"document": run.final_output.model_dump()}


async def responses() -> Answer:
    said = await Runner.run(agent(model=OpenAIResponsesModel), HELLO)
    run = await Runner.run(agent("required", once=True, model=OpenAIResponsesModel, tools=[TOOL]), PAINT)
    [made, *_] = calls(run.new_items)
    return {"text": said.final_output, "call": call(made.name, made.arguments)}


main(
    text=text,
    stream=stream,
    picture=picture,
    tools=tools,
    required=lambda: forced("required"),
    named=lambda: forced("paint"),
    streamed_call=streamed_call,
    schema=schema,
    schema_with_tools=schema_with_tools,
    responses=responses,
)
