"""Other weights in a model that runs: afterwards it is the other one, to the bit, and nothing of the first is left."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from service.demo_models import tiny
from service.engine import Delta, Finish, Sampling, kernels, tensors
from service.engine.model_engine import ModelEngine
from service.model.release import ReleaseError
from tests.box import wait_for
from tests.test_engine import load, picture, release, user

ASKED = Sampling(max_tokens=12, temperature=0, logprobs=5)
QUESTIONS: list[Any] = [
    "Hello",
    "What is this?",
    [picture("red"), {"type": "text", "text": "?"}],
    [picture("blue"), picture("red"), {"type": "text", "text": "?"}],
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two releases of one architecture."""
    found = []
    for seed in (1, 2):
        found.append(tmp_path_factory.mktemp(f"seed{seed}"))
        tiny.make(found[-1] / "model", seed=seed, dtype="float32")
    return found


@pytest.fixture(params=[True, False], ids=["packed", "plain"])
def first(paths: list[Path], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelEngine]:
    """An engine that holds the first release, its layers packed or not whatever processor this is."""
    monkeypatch.setattr(kernels, "_mkl_holds_back", lambda _: request.param)
    engine = load(paths[0])
    yield engine
    engine.close()


async def answer(engine: ModelEngine, question: Any, sampling: Sampling = ASKED) -> list[Delta]:
    return [item async for item in engine.stream(user(question), sampling) if isinstance(item, Delta)]


def answers(engine: ModelEngine) -> list[list[Delta]]:
    """Texts with the log probabilities of every token, each question alone and then all of them at once."""

    async def ask() -> list[list[Delta]]:
        alone = [await answer(engine, question) for question in QUESTIONS]
        return alone + list(await asyncio.gather(*(answer(engine, question) for question in QUESTIONS)))

    return asyncio.run(ask())


def text(said: list[Delta]) -> str:
    return "".join(delta.text for delta in said)


def exactly(said: list[list[Delta]]) -> list[list[Any]]:
    """Tokens of those asked alone with their probabilities, and of the others without: sums depend on the batch."""
    alone, together = said[: len(QUESTIONS)], said[len(QUESTIONS) :]
    numbers = [[(token.data, token.logprob, token.top) for delta in one for token in delta.logprobs] for one in alone]
    return [*numbers, *([text(one)] for one in together)]


def fresh(path: Path) -> list[list[Delta]]:
    engine = load(path)
    try:
        return answers(engine)
    finally:
        engine.close()


def put(engine: ModelEngine, path: Path) -> None:
    asyncio.run(engine.put(engine.read(release(path), lambda *_: None)))


def test_it_is_the_other_model_and_back(first: ModelEngine, paths: list[Path]) -> None:
    """Every token of every answer is as likely as to a freshly loaded model, with pictures seen before too."""
    before = answers(first)
    seen = first._vision.computed
    expected = fresh(paths[1])
    assert [text(one) for one in before] != [text(one) for one in expected]
    put(first, paths[1])
    assert exactly(answers(first)) == exactly(expected)
    assert first._vision.computed == 2 * seen, "pictures are looked at anew"
    put(first, paths[0])
    assert exactly(answers(first)) == exactly(before)


def test_nothing_is_written_to_the_files(first: ModelEngine, paths: list[Path]) -> None:
    """The tensors are views of the files, and stay what they were."""
    files = [path / "model/model.safetensors" for path in paths]
    before = [file.read_bytes() for file in files]
    put(first, paths[1])
    answers(first)
    assert [file.read_bytes() for file in files] == before


def test_who_is_being_answered_is_answered_first(first: ModelEngine, paths: list[Path]) -> None:
    """An answer under way ends as it would have; the weights come after it."""
    long = Sampling(max_tokens=300, temperature=0)
    state = first.read(release(paths[1]), lambda *_: None)

    async def both() -> tuple[list[Delta], list[Delta], list[Delta]]:
        alone = await answer(first, "Hello", long)
        began = asyncio.Event()

        async def straddle() -> list[Delta]:
            said = []
            async for item in first.stream(user("Hello"), long):
                began.set()
                if not isinstance(item, Finish):
                    said.append(item)
            return said

        running = asyncio.create_task(straddle())
        await began.wait()
        await first.put(state)
        assert running.done() or not first.usage().running
        return alone, await running, await answer(first, "Hello", long)

    alone, straddling, after = asyncio.run(both())
    assert text(straddling) == text(alone)
    assert text(after) != text(alone)


def test_the_tower_is_left_alone_while_it_looks(
    first: ModelEngine, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are not changed under a picture that is being looked at: they wait until it was."""
    vision, events = first._vision, []
    looking, go_on = threading.Event(), threading.Event()
    encode = vision._encode

    def slowly(*arguments: Any, **options: Any) -> Any:
        looking.set()
        assert go_on.wait(20)
        events.append("seen")
        return encode(*arguments, **options)

    real = tensors.put
    monkeypatch.setattr(vision, "_encode", slowly)

    def noted(model: Any, state: Any) -> None:
        events.append("put")
        real(model, state)

    monkeypatch.setattr(tensors, "put", noted)
    state = first.read(release(paths[1]), lambda *_: None)

    async def scenario() -> None:
        asked = asyncio.create_task(answer(first, QUESTIONS[2]))
        await asyncio.to_thread(looking.wait, 20)
        asked.cancel()  # nobody waits for it any more, but the tower looks on
        change = asyncio.create_task(first.put(state))
        await asyncio.sleep(0.1)
        go_on.set()
        await change

    asyncio.run(scenario())
    assert events == ["seen", "put"]
    monkeypatch.setattr(vision, "_encode", encode)
    assert exactly(answers(first)) == exactly(fresh(paths[1])), "what it saw then was forgotten"


def test_on_a_device_the_memory_stays_where_it_is(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done on CUDA, here on the CPU with memory of the model's own: addresses stay, answers change."""
    monkeypatch.setattr(kernels, "_mkl_holds_back", lambda _: False)
    monkeypatch.setattr(tensors, "_assign", tensors._copy)
    engine = load(paths[0])
    try:
        model = engine._model
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.clone(), requires_grad=False))
        kernels.install(model)
        addresses = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
        put(engine, paths[1])
        assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == addresses
        assert list(map(text, answers(engine))) == list(map(text, fresh(paths[1])))
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda state: state.pop("lm_head.weight"), "lm_head.weight is in one of them only"),
        (lambda state: state.update(more=torch.zeros(1)), "more is in one of them only"),
        (lambda state: state.update({"lm_head.weight": torch.zeros(2, 3)}), r"float32 \[2, 3\] instead of float32"),
        (lambda state: state.update({"lm_head.weight": state["lm_head.weight"].half()}), "float16"),
    ],
)
def test_what_does_not_fit_is_refused(
    paths: list[Path], change: Callable[[dict[str, Any]], Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of other names, shapes or kinds are refused before anything was changed."""
    engine = load(paths[0])
    try:
        read = engine.read(release(paths[1]), lambda *_: None)
        state = dict(read)
        change(state)
        monkeypatch.setattr("service.engine.model_engine.read_tensors", lambda *_: state)
        with pytest.raises(ReleaseError, match=why):
            engine.read(release(paths[1]), lambda *_: None)
    finally:
        engine.close()


def test_an_older_layout_is_refused(first: ModelEngine, paths: list[Path], tmp_path: Path) -> None:
    """Names that the library would have to translate: it does that for the whole process, in which a model answers."""
    shutil.copytree(paths[1], tmp_path / "old")
    file = tmp_path / "old/model/model.safetensors"
    state = {name.replace("model.visual.", "visual."): tensor for name, tensor in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ReleaseError, match="have not the names"):
        first.read(release(tmp_path / "old"), lambda *_: None)


def test_a_closed_engine_refuses(first: ModelEngine, paths: list[Path]) -> None:
    """Nobody waits for ever for weights that will not come."""
    state = first.read(release(paths[1]), lambda *_: None)

    async def scenario() -> None:
        asked = asyncio.create_task(answer(first, "Hello", Sampling(max_tokens=3000, temperature=0)))
        await asyncio.to_thread(wait_for, lambda: first.usage().running)
        change = asyncio.create_task(first.put(state))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(first.close)
        with pytest.raises(RuntimeError, match="closed"):
            await change
        with pytest.raises(RuntimeError, match="closed"):
            await asked
        with pytest.raises(RuntimeError, match="closed"):
            await first.put(state)

    asyncio.run(scenario())
