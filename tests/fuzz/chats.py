"""Targets: the JSON schema and the image of a chat request, through the whole application."""

from __future__ import annotations

import asyncio
import base64
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

__all__ = ["IMAGES", "SCHEMAS"]

REFUSALS = {400, 413, 415, 429}

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
def _start(engine: Callable[[Path], Engine], body: Callable[[bytes], bytes], directory: Path) -> Iterator[Run]:
    """The application; each input is one request, which must be answered or refused."""
    settings = Settings(slot="blue", state=directory, batch_rows=0)
    app = create_app(engine(directory), Identity("1.0.0", "blue", 1), settings, serving=lambda: True)
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x", timeout=None)

        def read(data: bytes) -> None:
            headers = {"content-type": "application/json"}
            with no_logged_errors():
                answer = runner.run(client.post("/v1/chat/completions", content=body(data), headers=headers))
            assert answer.status_code == 200 or answer.status_code in REFUSALS, answer.text
            assert len(answer.content) < 1 << 16, answer.text[:300]

        yield read
        runner.run(client.aclose())


# images: without a model


def _dummy(directory: Path) -> Engine:
    return DummyEngine(1, Release(directory, "1.0.0", EngineSettings(rows=4), ()), Limits())


def _image_body(data: bytes) -> bytes:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    return json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 1}).encode()


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
    release = Release(directory, "1.0.0", EngineSettings(rows=2, kv_tokens=4096), ())
    return ModelEngine.load(release, threads=1, limits=Limits(), progress=lambda *_: None)


def _schema_body(data: bytes) -> bytes:
    document = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    document["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": None}}
    return json.dumps(document).encode().replace(b"null", data)


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


IMAGES = Target("images", partial(_start, _dummy, _image_body), _generate_image, seconds=2.0, mebibytes=512)
SCHEMAS = Target("schemas", partial(_start, _tiny, _schema_body), _generate_schema, seconds=3.0, mebibytes=512)
