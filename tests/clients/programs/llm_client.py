"""The `llm` package, with the model in its extra-openai-models.yaml. It offers no choice of tools."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

directory = tempfile.TemporaryDirectory()
os.environ["LLM_USER_PATH"] = directory.name  # read when llm is imported

import llm  # noqa: E402
from cells import (  # noqa: E402
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
    paint,
    streamed,
)  # fmt: skip

Path(directory.name, "extra-openai-models.yaml").write_text(
    f"- {{model_id: glm, model_name: {MODEL}, api_base: '{URL}', vision: true, supports_schema: true, "
    "supports_tools: true}\n"
)
model = llm.get_model("glm")


def ask(prompt: str | None, **more: Any) -> Any:
    return model.prompt(prompt, **{"stream": False, "key": KEY, "temperature": 0, **more})


def text() -> Answer:
    return {"text": ask(HELLO).text()}


def stream() -> Answer:
    return streamed(list(ask(COUNT, stream=True)))


def picture() -> Answer:
    return {"text": ask(WHAT, attachments=[llm.Attachment(path=str(PICTURE))]).text()}


def tools() -> Answer:
    chat = model.conversation(tools=[paint])
    before = chat.prompt(SKILLS, stream=False, key=KEY, temperature=0)
    earlier = [llm.ToolResult(name="paint", output=DONE, tool_call_id="call_1")]
    after = ask(
        None,
        tools=[paint],
        tool_results=earlier,
        messages=[
            llm.user(SKILLS),
            llm.assistant(llm.parts.ToolCallPart(name="paint", arguments=CALL, tool_call_id="call_1")),
        ],
    )
    return {"before": before.text(), "after": after.text()}


def schema() -> Answer:
    return {"document": Shape.model_validate_json(ask(PAINT, schema=Shape).text()).model_dump()}


def schema_with_tools() -> Answer:
    found = ask(PAINT, schema=Shape, tools=[paint])
    for made in found.tool_calls():
        return {"call": call(made.name, made.arguments)}
    return {"document": Shape.model_validate_json(found.text()).model_dump()}


main(text=text, stream=stream, picture=picture, tools=tools, schema=schema, schema_with_tools=schema_with_tools)
