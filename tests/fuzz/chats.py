"""Targets: the JSON schema and the image of a chat request, and requests of every format, through the application."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from service.app import create_app
from service.contract.engine_settings import EngineSettings
from service.engine import Engine
from service.engine.dummy import DummyEngine
from service.engine.protocol import Limits
from service.identity import Identity
from service.model.release import Release
from service.settings import Settings
from tests.fuzz.logged import no_logged_errors
from tests.fuzz.mutation import mutate
from tests.fuzz.target import Run, Target

__all__ = ["IMAGES", "REQUESTS", "SCHEMAS"]

CHAT = "/v1/chat/completions"
PATHS = (CHAT, "/v1/responses", "/v1/completions")
REFUSALS = {400, 413, 415, 429}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 0.5, 2**31, 2**64, 1e308, "", "x", "\ud800", "\0", "auto", "required", "none", [], {},
    [None], [[]], [{}], {"type": "x"}, {"type": None}, {"a": 1}, "x" * 2000, ["x"] * 200, {"": ""},
)  # fmt: skip

SCHEMA_SEEDS: tuple[Any, ...] = (
    {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"$ref": "#/$defs/b"}},
        "$defs": {"b": {"enum": [1]}},
    },
    {"type": "array", "items": {"type": "integer", "minimum": -5}, "minItems": 1, "maxItems": 3, "uniqueItems": True},
    {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^(a|b)*c{2,5}[^x-z]$", "maxLength": 20}]},
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}},
    {"oneOf": [{"const": 1}, {"allOf": [{"type": "number"}, {"multipleOf": 0.5}]}], "not": {"type": "boolean"}},
    {"type": "object", "patternProperties": {"^x": True}, "additionalProperties": False, "required": ["x"]},
    {"type": "string", "format": "date-time"},
    {"if": {"type": "string"}, "then": {"minLength": 1}, "else": {"type": ["integer", "null"]}},
)
WRAPS = (
    ('{"type": "array", "items": ', "}"),
    ('{"type": "object", "required": ["a"], "properties": {"a": ', "}}"),
    ('{"anyOf": [{"type": "null"}, ', "]}"),
    ('{"allOf": [', "]}"),
    ('{"not": ', "}"),
)


@contextmanager
def _start(
    engine: Callable[[Path], Engine], request: Callable[[bytes], tuple[str, bytes]], directory: Path
) -> Iterator[Run]:
    """The application; each input is one request, a path and a body, which must be answered or refused."""
    settings = Settings(slot="blue", state=directory, batch_rows=0)
    app = create_app(engine(directory), Identity("1.0.0", "blue", 1), settings, serving=lambda: True)
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x", timeout=None)

        def read(data: bytes) -> None:
            headers = {"content-type": "application/json"}
            path, body = request(data)
            with no_logged_errors():
                answer = runner.run(client.post(path, content=body, headers=headers))
            assert answer.status_code == 200 or answer.status_code in REFUSALS, answer.text
            assert len(answer.content) < 1 << 16, answer.text[:300]

        yield read
        runner.run(client.aclose())


# images: without a model


def _dummy(directory: Path) -> Engine:
    return DummyEngine(1, Release(directory, "1.0.0", EngineSettings(rows=4), ()), Limits())


def _image_request(data: bytes) -> tuple[str, bytes]:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    return CHAT, json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 1}).encode()


@cache
def _image_seeds() -> tuple[bytes, ...]:
    seeds = []
    for kind, modes in {
        "PNG": ("RGB", "RGBA", "P", "1", "I;16", "LA"), "JPEG": ("RGB", "L", "CMYK"), "WEBP": ("RGB", "RGBA"),
        "GIF": ("P", "L"), "BMP": ("RGB", "P"), "TIFF": ("RGB", "F"), "ICO": ("RGBA",), "PPM": ("RGB",),
    }.items():  # fmt: skip
        for mode in modes:
            for options in ({}, {"save_all": True, "append_images": [Image.new(mode, (16, 12))]}):
                data = io.BytesIO()
                Image.new(mode, (16, 12)).save(
                    data, kind, **(options if kind in ("GIF", "WEBP", "PNG", "TIFF") else {})
                )
                seeds.append(data.getvalue())
    return tuple(seeds)


def _generate_image(random: random.Random, max_size: int) -> bytes:
    return mutate(random, _image_seeds(), max_size)


# schemas: with a small model, whose vocabulary the grammars are compiled for


def _tiny(directory: Path) -> Engine:
    from service.demo_models import tiny
    from service.engine.model_engine import ModelEngine

    tiny.make(directory / "model", seed=1)
    release = Release(directory, "1.0.0", EngineSettings(rows=2, kv_tokens=1024, max_new_tokens=8), ())
    return ModelEngine.load(release, threads=1, limits=Limits(), progress=lambda *_: None)


def _schema_request(data: bytes) -> tuple[str, bytes]:
    """The schema is that of the content, or of a function that must be called."""
    document: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    if len(data) % 2:
        document["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": None}}
    else:
        document["tools"] = [{"type": "function", "function": {"name": "f", "parameters": None}}]
        document["tool_choice"] = "required"
    return CHAT, json.dumps(document).encode().replace(b"null", data)


def _generate_schema(random: random.Random, max_size: int) -> bytes:
    """Return a schema of any shape; every other one is changed as bytes, and may be no JSON."""
    nodes = min(int(random.paretovariate(0.4)), max_size // 20)
    if random.random() < 0.3:
        begin, end = random.choice(WRAPS)
        schema = begin * nodes + '{"type": "string"}' + end * nodes
    else:
        schema = json.dumps(_schema(random, nodes))
    if len(schema) > max_size:
        schema = json.dumps(random.choice(SCHEMA_SEEDS))
    data = schema.encode()
    return data if random.random() < 0.5 else mutate(random, [data, data, *_schema_seeds()], max_size)


@cache
def _schema_seeds() -> tuple[bytes, ...]:
    return tuple(json.dumps(schema).encode() for schema in SCHEMA_SEEDS)


def _schema(random: random.Random, nodes: int) -> Any:
    """Return a schema of about so many nodes: a chain of references, or wide in one of several ways."""
    match random.randrange(6):
        case 0:
            defs = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(nodes)}
            return {"$ref": "#/$defs/d0", "$defs": defs | {f"d{nodes}": random.choice([{"type": "null"}, {}])}}
        case 1:
            properties = {f"p{number}": {"type": "integer"} for number in range(nodes)}
            return {"type": "object", "properties": properties, "required": ["p0"]}
        case 2:
            return {"enum": [f"value {number}" for number in range(nodes)]}
        case 3:
            return {"type": "string", "pattern": "(" * (nodes % 500) + f"a{{1,{nodes}}}" + ")*" * (nodes % 500)}
        case 4:
            return {"type": "array", "minItems": nodes, "maxItems": nodes * 1000, "items": {"maxLength": nodes}}
        case _:
            kind = random.choice(["anyOf", "oneOf", "allOf"])
            return {kind: [random.choice(SCHEMA_SEEDS) for _ in range(nodes % 300)]}


# requests: with the small model, since most fields mean nothing to the other engine


def _request(data: bytes) -> tuple[str, bytes]:
    path, _, body = data.partition(b"\n")
    return PATHS[sum(path) % len(PATHS)], body


@cache
def _request_seeds() -> tuple[bytes, ...]:
    tool = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}, "b": {"enum": [1, None]}}}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "x"}'}}
    chats: list[Any] = [
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "t"}], "name": "n"},
                {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "r"},
                {"role": "tool", "tool_call_id": "c", "content": "ok"},
            ],
            "tools": [{"type": "function", "function": tool}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "parallel_tool_calls": False,
        },
        {
            "messages": [{"role": "user", "content": "t"}],
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "n": 2, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 4, "stop": ["a", "b"],
            "logit_bias": {"1": -100, "2": 3.5}, "min_tokens": 1, "stop_token_ids": [3], "ignore_eos": True,
            "logprobs": True, "top_logprobs": 2, "reasoning_effort": "none", "repetition_penalty": 1.1,
        },
        {"messages": [{"role": "user", "content": "t"}], "guided_regex": "(a|b)+", "thinking": {"type": "enabled"}},
        {"messages": [{"role": "user", "content": "t"}], "structured_outputs": {"choice": ["x", "y"]}},
    ]  # fmt: skip
    responses: list[Any] = [
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "t"}]},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "ok"},
            ],
            "instructions": "i", "tools": [{"type": "function", **tool}], "tool_choice": "required",
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
            "reasoning": {"effort": "low"}, "include": ["message.output_text.logprobs"], "metadata": {"a": "b"},
        },
        {"input": "t", "stream": True, "store": False, "temperature": 0, "truncation": "disabled"},
    ]  # fmt: skip
    completions: list[Any] = [
        {"prompt": ["<|user|>\nt<|assistant|>"], "logprobs": 2, "n": 2, "best_of": 2, "stop": "x"},
        {"prompt": "t", "stream": True, "stream_options": {"include_usage": True}, "echo": False, "suffix": None},
    ]
    limits = {CHAT: "max_tokens", PATHS[1]: "max_output_tokens", PATHS[2]: "max_tokens"}
    return tuple(
        bytes([index]) + b"\n" + json.dumps({**document, limits[path]: 3}).encode()
        for index, (path, documents) in enumerate(zip(PATHS, (chats, responses, completions), strict=True))
        for document in documents
    )


def _generate_request(random: random.Random, max_size: int) -> bytes:
    """Return a request with some values replaced by others, or changed as bytes."""
    data = random.choice(_request_seeds())
    if random.random() < 0.4:
        return mutate(random, _request_seeds(), max_size)
    path, _, body = data.partition(b"\n")
    document = json.loads(body)
    for _ in range(random.randint(1, 3)):
        _replace_one(random, document)
    return (path + b"\n" + json.dumps(document).encode())[:max_size]


def _replace_one(random: random.Random, value: Any) -> None:
    """Replace a value at some depth by another one, or remove it."""
    while isinstance(value, dict | list) and value:
        key: Any = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
        if not isinstance(value[key], dict | list) or random.random() < 0.3:
            if random.random() < 0.2:
                del value[key]
            else:
                value[key] = copy.deepcopy(random.choice(VALUES))  # another one may be put into it
            return
        value = value[key]


IMAGES = Target("images", partial(_start, _dummy, _image_request), _generate_image, seconds=2.0, mebibytes=512)
SCHEMAS = Target("schemas", partial(_start, _tiny, _schema_request), _generate_schema, seconds=3.0, mebibytes=512)
REQUESTS = Target("requests", partial(_start, _tiny, _request), _generate_request, seconds=3.0, mebibytes=512)
