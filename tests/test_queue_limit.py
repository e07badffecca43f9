"""The queue limit on the real engine, with chat templates that end with an open <think> and without."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any, cast

import pytest

from service.chat.errors import ApiError
from service.chat.request import parse_document
from service.chat.service import ChatService
from service.contract.engine_settings import EngineSettings
from service.demo_models import tiny
from service.engine import Limits, Sampling
from service.engine.model_engine import ModelEngine
from service.identity import Identity
from service.model.release import Release
from service.settings import Settings

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(params=["", "{{ '<think>' }}"], ids=["plain", "think"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelEngine]:
    """An engine with one row."""
    path = tmp_path_factory.mktemp("release")
    tiny.make(path / "model", seed=1)
    with (path / "model/chat_template.jinja").open("a") as template:
        template.write(request.param)
    release = Release(path, "1.0.0", EngineSettings(rows=1), ())
    engine = ModelEngine.load(release, threads=1, limits=Limits(max_wait=0.3), progress=lambda *_: None)
    yield engine
    engine.close()


def test_a_request_without_a_row_counts_as_waiting(engine: ModelEngine) -> None:
    """No item comes before the first token: the queue limit holds, and a request that waited too long gets 429."""
    chat = ChatService(engine, Identity("1.0.0", "blue", 1), Settings(slot="blue", max_queue=2))

    async def ask(*, stream: bool = True) -> str | None:
        """The error of a request, which is closed after its first event."""
        request = parse_document({"messages": MESSAGES, "stream": stream})
        try:
            if stream:
                async with aclosing(chat.stream_events(request, "id")) as events:
                    await anext(events)
            else:
                await chat.create_completion(request)
        except ApiError as error:
            return f"{error.status} {error.code}"
        return None

    async def scenario() -> list[str | None]:
        async with aclosing(cast("Any", engine.stream(MESSAGES, Sampling(max_tokens=3000, temperature=0)))) as running:
            await anext(running)
            waiting = [asyncio.create_task(ask(stream=stream)) for stream in (True, False)]
            async with asyncio.timeout(10):
                while engine.usage().waiting < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            refused = await ask()
            return [refused, *await asyncio.gather(*waiting)]

    assert asyncio.run(scenario()) == ["429 queue_full", "429 queue_timeout", "429 queue_timeout"]
