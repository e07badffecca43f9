"""Text outside the contents of messages, which reaches the chat template all the same."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.chat.errors import ApiError
from service.chat.request import ChatRequest
from service.chat.service import ChatService
from service.contract.engine_settings import EngineSettings
from service.engine import Conversation, Limits, Sampling
from service.engine.dummy import DummyEngine
from service.engine.model_engine import ModelEngine
from service.engine.prompt_size import CHARACTERS_PER_TOKEN, characters
from service.fairness.client import Client
from service.identity import Identity
from service.model.processor import Processor
from service.model.release import Release
from service.settings import Settings

TOKENS = 1000  # of a prompt
USER = {"role": "user", "content": "hi"}
FUNCTION = {"type": "function", "function": {"name": "f"}}


def _call(name: str, arguments: Any) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}


def _tool(**function: Any) -> dict[str, Any]:
    return {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f", **function}}]}


PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    **{role: lambda text, role=role: {"messages": [{"role": role, "content": text}, USER]} for role in  # type: ignore[misc]
       ("system", "developer", "user", "assistant", "tool")},
    "part": lambda text: {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]},
    "reasoning": lambda text: {"messages": [USER, {"role": "assistant", "content": "a", "reasoning_content": text}]},
    "call id": lambda text: {"messages": [USER, {"role": "tool", "content": "a", "tool_call_id": text}]},
    "function": lambda text: _call(text, {}),
    "argument": lambda text: _call("f", {"a": text}),
    "argument's name": lambda text: _call("f", {text: 1}),
    "nested argument": lambda text: _call("f", {"a": [{"b": [text]}]}),
    "number": lambda text: _call("f", {"a": [10**len(text[:4000])] * (1 + len(text) // 4000)}),
    "elements": lambda text: _call("f", {"a": [1] * (len(text) // 4)}),
    "description": lambda text: _tool(description=text),
    "parameter's name": lambda text: _tool(parameters={"properties": {text: {}}}),
    "enumeration": lambda text: _tool(parameters={"properties": {"a": {"enum": [text]}}}),
    "messages": lambda text: {"messages": [{"role": "assistant", "content": ""}] * (len(text) // 8) + [USER]},
}  # fmt: skip


@pytest.fixture(scope="module")
def chat() -> ChatService:
    engine = DummyEngine(0, Release(Path("/"), "1", EngineSettings(), ()), Limits(max_prompt_tokens=TOKENS))
    return ChatService(engine, Identity("1", "blue", 1), Settings(slot="blue"))


@pytest.mark.parametrize("place", PLACES)
def test_text_counts_wherever_it_stands(chat: ChatService, place: str) -> None:
    """A text that alone exceeds the limit is refused before the prompt is prepared."""
    request = PLACES[place]("x" * (TOKENS * CHARACTERS_PER_TOKEN + 100))
    with pytest.raises(ApiError) as caught:
        asyncio.run(chat.complete(request | {"max_tokens": 1}))
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    asyncio.run(chat.complete(PLACES[place]("x" * 10) | {"max_tokens": 1}))


TEXT = st.text(max_size=40) | st.text(alphabet='<>|"\\\x01\n a', max_size=40)
JSON = st.recursive(
    TEXT | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXT},
    optional={
        "reasoning_content": TEXT,
        "tool_call_id": TEXT,
        "tool_calls": st.lists(
            st.builds(lambda name, arguments: {"function": {"name": name, "arguments": arguments}}, TEXT,
                      st.dictionaries(TEXT, JSON, max_size=3)), max_size=2),
    },
)  # fmt: skip
TOOLS = st.lists(
    st.builds(lambda text, parameters: {"type": "function", "function": {"name": "f", "description": text,
              "parameters": parameters}}, TEXT, st.dictionaries(TEXT, JSON, max_size=3)), max_size=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def processor(checkpoints: dict[str, Path]) -> Processor:
    return Processor.read(checkpoints["1.0.0"])


@given(messages=st.lists(MESSAGE, min_size=1, max_size=4), tools=TOOLS)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_count_bounds_what_the_template_renders(
    processor: Processor, messages: Conversation, tools: list[dict[str, Any]]
) -> None:
    """Nothing reaches the prompt that was not counted: it has at most the tokens that the estimate admits."""
    rendered = processor.apply_chat_template(messages, tools=tools or None, tokenize=False, add_generation_prompt=True)
    counted = characters([messages, tools], 1 << 30)
    assert len(rendered) <= 1000 + 7 * counted  # JSON writes a control character with six


@pytest.fixture(scope="module")
def engine(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelEngine]:
    path = tmp_path_factory.mktemp("release")
    (path / "model").symlink_to(checkpoints["1.0.0"])
    release = Release(path, "1.0.0", EngineSettings(), ())
    made = ModelEngine.load(release, threads=1, limits=Limits(), progress=lambda *_: None)
    yield made
    made.close()


@pytest.mark.parametrize("keys", [[""], ["a", "b", "c"]])
def test_requests_that_are_slow_to_prepare_do_not_stop_other_clients(
    engine: ModelEngine, monkeypatch: pytest.MonkeyPatch, keys: list[str]
) -> None:
    """One address sends many of them, with one key or several, and disconnects; another is answered meanwhile."""
    proceed, build = threading.Event(), engine._prompt_builder.build

    def slow(messages: Any, *arguments: Any) -> Any:
        if messages[0]["content"] == "slow":
            proceed.wait(20)
        return build(messages, *arguments)

    monkeypatch.setattr(engine._prompt_builder, "build", slow)

    async def ask(content: str, client: Client) -> None:
        async for _ in engine.stream([USER | {"content": content}], Sampling(max_tokens=2), client=client):
            pass

    async def scenario() -> None:
        flood = [asyncio.create_task(ask("slow", Client("attacker", key))) for key in keys * 5]
        await asyncio.sleep(0.05)
        for task in flood[::2]:
            task.cancel()
        await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            await asyncio.gather(*(ask("hi", Client("other")) for _ in range(3)))
        proceed.set()
        await asyncio.gather(*flood, return_exceptions=True)

    try:
        asyncio.run(scenario())
    finally:
        proceed.set()


def test_one_address_leaves_a_part_of_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets 429 while others are still admitted."""
    from tests.test_app import HELLO, FakeEngine, settings

    async def scenario() -> None:
        engine = FakeEngine(wait_at=0)
        chat = ChatService(engine, Identity("1", "green", 1), settings(max_queue=4, client_share=0.5))

        async def ask(client: Client) -> Any:
            request = await chat.parse(json.dumps(HELLO).encode(), client, ChatRequest)
            return await chat.create_completion(request, client=client)

        flood = [asyncio.create_task(ask(Client("attacker", str(key)))) for key in range(6)]
        await asyncio.sleep(0.05)
        refused = [task for task in flood if task.done()]
        assert len(refused) == 4
        assert all("share" in str(task.exception()) for task in refused)
        other = asyncio.create_task(ask(Client("other")))
        await asyncio.sleep(0.05)
        assert not other.done()
        for task in (*flood, other):
            task.cancel()
        await asyncio.gather(*flood, other, return_exceptions=True)

    asyncio.run(scenario())
