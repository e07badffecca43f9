"""The `pydantic-ai` package: agents, and single requests where an agent would go on calling."""

from __future__ import annotations

from typing import Any

from cells import (
    CALL,
    COUNT,
    DONE,
    HELLO,
    MODEL,
    PAINT,
    PICTURE,
    SKILLS,
    WHAT,
    Answer,
    Shape,
    call,
    main,
    paint,
    streamed,
)
from pydantic_ai import Agent, BinaryContent, NativeOutput, Tool, ToolOutput
from pydantic_ai.direct import model_request_stream_sync, model_request_sync
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)  # fmt: skip
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(), settings=ModelSettings(temperature=0))
TOOLS: dict[str, Any] = {"function_tools": [Tool(paint).tool_def], "allow_text_output": True}


def text() -> Answer:
    return {"text": Agent(model).run_sync(HELLO).output}


async def stream() -> Answer:
    async with Agent(model).run_stream(COUNT) as run:
        return streamed([piece async for piece in run.stream_text(delta=True, debounce_by=None)])


def picture() -> Answer:
    return {
        "text": Agent(model).run_sync([BinaryContent(data=PICTURE.read_bytes(), media_type="image/png"), WHAT]).output
    }


def tools() -> Answer:
    agent = Agent(model, tools=[paint])
    earlier: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart(SKILLS)]),
        ModelResponse(parts=[ToolCallPart("paint", CALL, "call_1")]),
        ModelRequest(parts=[ToolReturnPart("paint", DONE, "call_1")]),
    ]
    return {"before": agent.run_sync(SKILLS).output, "after": agent.run_sync(message_history=earlier).output}


def ask(parameters: dict[str, Any], **settings: Any) -> Answer:
    response = model_request_sync(
        model,
        [ModelRequest.user_text_prompt(PAINT)],
        model_settings=ModelSettings(**settings),
        model_request_parameters=ModelRequestParameters(**parameters),
    )
    for part in response.parts:
        if isinstance(part, ToolCallPart):
            return {"call": call(part.tool_name, part.args)}
    return {"document": Shape.model_validate_json(response.text or "").model_dump()}


def streamed_call() -> Answer:
    with model_request_stream_sync(
        model,
        [ModelRequest.user_text_prompt(PAINT)],
        model_settings=ModelSettings(tool_choice=["paint"]),
        model_request_parameters=ModelRequestParameters(**TOOLS),
    ) as events:
        for _ in events:
            pass
        [made, *_] = [part for part in events.response.parts if isinstance(part, ToolCallPart)]
    return {"call": call(made.tool_name, made.args)}


def schema() -> Answer:
    native = Agent(model, output_type=NativeOutput(Shape)).run_sync(PAINT).output
    by_tool = Agent(model, output_type=ToolOutput(Shape)).run_sync(PAINT).output
    assert isinstance(by_tool, Shape)
    return {"document": native.model_dump()}


def schema_with_tools() -> Answer:
    definition = OutputObjectDefinition(json_schema=Shape.model_json_schema(), name="Shape", strict=True)
    return ask({**TOOLS, "output_mode": "native", "output_object": definition})


main(
    text=text,
    stream=stream,
    picture=picture,
    tools=tools,
    required=lambda: ask(TOOLS, tool_choice="required"),
    named=lambda: ask(TOOLS, tool_choice=["paint"]),
    streamed_call=streamed_call,
    schema=schema,
    schema_with_tools=schema_with_tools,
)
