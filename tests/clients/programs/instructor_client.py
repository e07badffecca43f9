"""The `instructor` package. It forces a call of one function, or a schema."""

from __future__ import annotations

import instructor
from cells import COUNT, HELLO, MODEL, PAINT, PICTURE, WHAT, Answer, Shape, main, streamed
from instructor import Mode
from openai import OpenAI


def client(mode: Mode) -> instructor.Instructor:
    return instructor.from_openai(OpenAI(max_retries=0), mode=mode, model=MODEL, temperature=0)


def said(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


def text() -> Answer:
    answer = client(Mode.TOOLS).create(response_model=None, messages=said(HELLO))
    return {"text": answer.choices[0].message.content}


def stream() -> Answer:
    chunks = client(Mode.TOOLS).create(response_model=None, messages=said(COUNT), stream=True)
    return streamed([chunk.choices[0].delta.content or "" for chunk in chunks])


def picture() -> Answer:
    content = [instructor.Image.from_path(PICTURE), WHAT]
    answer = client(Mode.TOOLS).create(response_model=None, messages=said(content))
    return {"text": answer.choices[0].message.content}


def made(shape: Shape) -> Answer:
    return {"call": {"name": "paint", "arguments": shape.model_dump()}}


def named() -> Answer:
    return made(client(Mode.TOOLS).create(response_model=Shape, messages=said(PAINT)))


def streamed_call() -> Answer:
    *_, last = client(Mode.TOOLS).create_partial(response_model=Shape, messages=said(PAINT))
    return made(Shape.model_validate(last.model_dump()))


def schema() -> Answer:
    return {"document": client(Mode.JSON_SCHEMA).create(response_model=Shape, messages=said(PAINT)).model_dump()}


main(
    text=text,
    stream=stream,
    picture=picture,
    named=named,
    streamed_call=streamed_call,
    schema=schema,
)
