"""Replacement of the weights of a loaded model: bit-identical to a model that is loaded with them."""

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
from service.engine import Delta, Finish, Sampling, kernels, staging, tensors
from service.engine.model_engine import ModelEngine
from service.model.release import ReleaseError
from tests.box import wait_for
from tests.test_engine import image, load, release, user
from tests.test_staging import FakeMemory

SAMPLING = Sampling(max_tokens=12, temperature=0, logprobs=5)
QUESTIONS: list[Any] = [
    "Hello",
    "What is this?",
    [image("red"), {"type": "text", "text": "?"}],
    [image("blue"), image("red"), {"type": "text", "text": "?"}],
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
    """An engine with the first release, with packed linear layers and without, on any processor."""
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda _: request.param)
    engine = load(paths[0])
    yield engine
    engine.close()


async def answer(engine: ModelEngine, question: Any, sampling: Sampling = SAMPLING) -> list[Delta]:
    return [item async for item in engine.stream(user(question), sampling) if isinstance(item, Delta)]


def answers(engine: ModelEngine) -> list[list[Delta]]:
    """Outputs with log probabilities: each question alone, then all of them in one batch."""

    async def ask() -> list[list[Delta]]:
        alone = [await answer(engine, question) for question in QUESTIONS]
        return alone + list(await asyncio.gather(*(answer(engine, question) for question in QUESTIONS)))

    return asyncio.run(ask())


def text(output: list[Delta]) -> str:
    return "".join(delta.text for delta in output)


def comparable(outputs: list[list[Delta]]) -> list[list[Any]]:
    """Tokens and log probabilities of the outputs computed alone, texts of the batched ones: rounding may differ."""
    alone, batched = outputs[: len(QUESTIONS)], outputs[len(QUESTIONS) :]
    numbers = [
        [(token.data, token.logprob, token.top) for delta in output for token in delta.logprobs] for output in alone
    ]
    return [*numbers, *([text(output)] for output in batched)]


def fresh(path: Path) -> list[list[Delta]]:
    engine = load(path)
    try:
        return answers(engine)
    finally:
        engine.close()


def replace(engine: ModelEngine, path: Path) -> None:
    asyncio.run(engine.replace_weights(engine.read_weights(release(path), lambda *_: None)))


def test_the_model_equals_one_loaded_with_the_other_weights(first: ModelEngine, paths: list[Path]) -> None:
    """All log probabilities equal those of a freshly loaded model, also for images that were cached; and back."""
    before = answers(first)
    computed = first._vision.computed
    expected = fresh(paths[1])
    assert list(map(text, before)) != list(map(text, expected))
    replace(first, paths[1])
    assert comparable(answers(first)) == comparable(expected)
    assert first._vision.computed == 2 * computed, "images are encoded again"
    replace(first, paths[0])
    assert comparable(answers(first)) == comparable(before)


def test_the_files_are_not_written(first: ModelEngine, paths: list[Path]) -> None:
    """Replaced tensors are views of the files, whose content must not change."""
    files = [path / "model/model.safetensors" for path in paths]
    before = [file.read_bytes() for file in files]
    replace(first, paths[1])
    answers(first)
    assert [file.read_bytes() for file in files] == before


def test_running_requests_finish_with_the_old_weights(first: ModelEngine, paths: list[Path]) -> None:
    """The weights are replaced after the running requests have finished, and later requests use them."""
    long = Sampling(max_tokens=300, temperature=0)
    state = first.read_weights(release(paths[1]), lambda *_: None)

    async def both() -> tuple[list[Delta], list[Delta], list[Delta]]:
        alone = await answer(first, "Hello", long)
        started = asyncio.Event()

        async def run() -> list[Delta]:
            output = []
            async for item in first.stream(user("Hello"), long):
                started.set()
                if not isinstance(item, Finish):
                    output.append(item)
            return output

        running = asyncio.create_task(run())
        await started.wait()
        await first.replace_weights(state)
        assert running.done() or not first.usage().running
        return alone, await running, await answer(first, "Hello", long)

    alone, running, after = asyncio.run(both())
    assert text(running) == text(alone)
    assert text(after) != text(alone)


def test_weights_are_not_replaced_while_an_image_is_encoded(
    first: ModelEngine, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replacement waits until the vision tower has finished the image."""
    vision, events = first._vision, []
    encoding, resume = threading.Event(), threading.Event()
    encode = vision._get_image_features

    def slow(*arguments: Any, **options: Any) -> Any:
        encoding.set()
        assert resume.wait(20)
        events.append("encoded")
        return encode(*arguments, **options)

    original = tensors.replace
    monkeypatch.setattr(vision, "_get_image_features", slow)

    def recorded(model: Any, state: Any) -> None:
        events.append("replaced")
        original(model, state)

    monkeypatch.setattr(tensors, "replace", recorded)
    state = first.read_weights(release(paths[1]), lambda *_: None)

    async def scenario() -> None:
        request = asyncio.create_task(answer(first, QUESTIONS[2]))
        await asyncio.to_thread(encoding.wait, 20)
        request.cancel()  # the encoding continues in its thread
        change = asyncio.create_task(first.replace_weights(state))
        await asyncio.sleep(0.1)
        resume.set()
        await change

    asyncio.run(scenario())
    assert events == ["encoded", "replaced"]
    monkeypatch.setattr(vision, "_get_image_features", encode)
    assert comparable(answers(first)) == comparable(fresh(paths[1])), "the features of the old weights are not cached"


def test_on_a_device_the_memory_is_overwritten_in_place(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA code path, here on the CPU with private memory: addresses stay the same, outputs change."""
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda _: False)
    monkeypatch.setattr(tensors, "_assign", tensors._copy)
    memory = FakeMemory(1 << 40, 0)
    monkeypatch.setattr(staging, "memory_of", lambda _: memory)
    engine = load(paths[0])
    try:
        model = engine._model
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.clone(), requires_grad=False))
        kernels.install(model)
        addresses = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
        staged = engine.stage_weights(engine.read_weights(release(paths[1]), lambda *_: None), lambda *_: None)
        asyncio.run(engine.replace_weights(staged.weights))
        staged.release()
        assert (staged.place, memory.held) == ("device memory", [])
        assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == addresses
        assert list(map(text, answers(engine))) == list(map(text, fresh(paths[1])))
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda state: state.pop("lm_head.weight"), "only one of them has lm_head.weight"),
        (lambda state: state.update(more=torch.zeros(1)), "only one of them has more"),
        (lambda state: state.update({"lm_head.weight": torch.zeros(2, 3)}), r"float32 \[2, 3\] instead of float32"),
        (lambda state: state.update({"lm_head.weight": state["lm_head.weight"].half()}), "float16"),
    ],
)
def test_weights_that_do_not_match_are_refused(
    paths: list[Path], change: Callable[[dict[str, Any]], Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of other names, shapes or dtypes raise ReleaseError before anything is changed."""
    engine = load(paths[0])
    try:
        read = engine.read_weights(release(paths[1]), lambda *_: None)
        state = dict(read)
        change(state)
        monkeypatch.setattr("service.model.checkpoint.read_weights", lambda *_: state)
        with pytest.raises(ReleaseError, match=why):
            engine.read_weights(release(paths[1]), lambda *_: None)
    finally:
        engine.close()


def test_an_older_layout_is_refused(first: ModelEngine, paths: list[Path], tmp_path: Path) -> None:
    """Tensor names that transformers would have to convert are refused: that has side effects on the running model."""
    shutil.copytree(paths[1], tmp_path / "old")
    file = tmp_path / "old/model/model.safetensors"
    state = {name.replace("model.visual.", "visual."): tensor for name, tensor in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ReleaseError, match="differ from the model"):
        first.read_weights(release(tmp_path / "old"), lambda *_: None)


def test_a_closed_engine_rejects_new_weights(first: ModelEngine, paths: list[Path]) -> None:
    """replace_weights raises if the engine is closed before or while it waits."""
    state = first.read_weights(release(paths[1]), lambda *_: None)

    async def scenario() -> None:
        request = asyncio.create_task(answer(first, "Hello", Sampling(max_tokens=3000, temperature=0)))
        await asyncio.to_thread(wait_for, lambda: first.usage().running)
        change = asyncio.create_task(first.replace_weights(state))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(first.close)
        with pytest.raises(RuntimeError, match="closed"):
            await change
        with pytest.raises(RuntimeError, match="closed"):
            await request
        with pytest.raises(RuntimeError, match="closed"):
            await first.replace_weights(state)

    asyncio.run(asyncio.wait_for(scenario(), 60))
