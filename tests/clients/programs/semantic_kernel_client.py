"""The `semantic-kernel` package. It offers no choice of one function by name."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from functools import reduce
from typing import Any

from cells import COUNT, DONE, HELLO, MODEL, PAINT, PICTURE, SKILLS, WHAT, Answer, Shape, call, main, streamed
from openai import AsyncOpenAI
from semantic_kernel import Kernel
from semantic_kernel.connectors.ai.function_choice_behavior import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistory, ChatMessageContent, FunctionCallContent, ImageContent, TextContent
from semantic_kernel.functions import kernel_function


class Colour(StrEnum):
    """The package writes no schema of a Literal."""

    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    """The size."""

    SMALL = 1
    MEDIUM = 2
    LARGE = 3


@kernel_function
def paint(colour: Colour, size: Size, filled: bool) -> str:
    """Paint a shape."""
    return DONE


kernel = Kernel()
kernel.add_function("shapes", paint)


def service() -> OpenAIChatCompletion:
    return OpenAIChatCompletion(MODEL, async_client=AsyncOpenAI(max_retries=0))


def settings(**more: Any) -> OpenAIChatPromptExecutionSettings:
    return OpenAIChatPromptExecutionSettings(temperature=0, **more)


def history(*items: Any) -> ChatHistory:
    return ChatHistory(messages=[ChatMessageContent(role="user", items=list(items))])


async def ask(said: ChatHistory, **more: Any) -> Any:
    return await service().get_chat_message_content(said, settings(**more), kernel=kernel)


def calls(message: Any) -> list[FunctionCallContent]:
    return [item for item in message.items if isinstance(item, FunctionCallContent)]


async def text() -> Answer:
    return {"text": str(await ask(history(TextContent(text=HELLO))))}


async def stream() -> Answer:
    chunks = service().get_streaming_chat_message_content(history(TextContent(text=COUNT)), settings())
    return streamed([str(chunk) async for chunk in chunks])


async def picture() -> Answer:
    image = ImageContent.from_image_file(path=str(PICTURE))
    return {"text": str(await ask(history(image, TextContent(text=WHAT))))}


async def tools() -> Answer:
    said = history(TextContent(text=SKILLS))
    before = await ask(said, function_choice_behavior=FunctionChoiceBehavior.Auto())
    after = await ask(said, function_choice_behavior=FunctionChoiceBehavior.Required())  # calls, then asks again
    return {"before": str(before), "after": str(after)}


async def required() -> Answer:
    behaviour = FunctionChoiceBehavior.Required(auto_invoke=False)
    [made, *_] = calls(await ask(history(TextContent(text=PAINT)), function_choice_behavior=behaviour))
    return {"call": call(made.function_name, made.arguments)}


async def streamed_call() -> Answer:
    behaviour = FunctionChoiceBehavior.Required(auto_invoke=False)
    said, chosen = history(TextContent(text=PAINT)), settings(function_choice_behavior=behaviour)
    chunks = [
        chunk async for chunk in service().get_streaming_chat_message_content(said, chosen, kernel=kernel) if chunk
    ]
    [made, *_] = calls(reduce(lambda one, other: one + other, chunks))
    return {"call": call(made.function_name, made.arguments)}


async def schema() -> Answer:
    found = await ask(history(TextContent(text=PAINT)), response_format=Shape)
    return {"document": Shape.model_validate_json(str(found)).model_dump()}


async def schema_with_tools() -> Answer:
    behaviour = FunctionChoiceBehavior.Auto(auto_invoke=False)
    said = history(TextContent(text=PAINT))
    found = await ask(said, response_format=Shape, function_choice_behavior=behaviour)
    for made in calls(found):
        return {"call": call(made.function_name, made.arguments)}
    return {"document": Shape.model_validate_json(str(found)).model_dump()}


main(
    text=text,
    stream=stream,
    picture=picture,
    tools=tools,
    required=required,
    streamed_call=streamed_call,
    schema=schema,
    schema_with_tools=schema_with_tools,
)
