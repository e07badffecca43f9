"""The engine without a model, which only tests select: deterministic, quick to load, and as strict about files."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from service.contract.engine_settings import EngineSettings
from service.engine import (
    Delta,
    Finish,
    Grammar,
    Limits,
    PromptTooLong,
    QueueTimeout,
    Refused,
    Sampling,
    TokenLogprob,
    WorkerEngine,
    loader,
)
from service.engine.dummy import DummyEngine
from service.model.release import Release, ReleaseError
from service.settings import Settings
from tests.box import CODE

ASKED = [{"role": "user", "content": "Hello"}]


def release(path: Path, **engine: Any) -> Release:
    """A release around a checkpoint that lies under `path`."""
    return Release(path, path.name, EngineSettings(**engine), ())


@pytest.fixture
def releases(checkpoints: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Directories of two releases."""
    for version, path in checkpoints.items():
        shutil.copytree(path, tmp_path / version / "model")
    return {version: tmp_path / version for version in checkpoints}


def load(path: Path, limits: Limits | None = None, **engine: Any) -> DummyEngine:
    return DummyEngine.load(release(path, **engine), limits=limits or Limits(), progress=lambda *_: None)


async def answer(engine: DummyEngine, **more: Any) -> tuple[str, Finish]:
    items = [item async for item in engine.stream(ASKED, Sampling(**more))]
    assert isinstance(items[-1], Finish)
    return "".join(item.text for item in items if isinstance(item, Delta)), items[-1]


def test_words_depend_on_the_release_and_the_question(releases: dict[str, Path]) -> None:
    """The same release and question give the same words; another release, and weights that were put, give others."""
    first, again, other = (load(releases[version]) for version in ("1.0.0", "1.0.0", "1.1.0"))

    async def scenario() -> None:
        said, finish = await answer(first, max_tokens=7)
        assert len(said.split()) == finish.completion_tokens == 7
        assert finish.reason == "length"
        [delta, _] = [item async for item in first.stream(ASKED, Sampling(max_tokens=1, logprobs=1))]
        assert isinstance(delta, Delta)
        assert (delta.tokens, delta.prompt_tokens) == (1, finish.prompt_tokens)
        assert delta.logprobs == (TokenLogprob(delta.text.encode(), 0.0, ((delta.text.encode(), 0.0),)),)
        assert (await answer(again, max_tokens=7))[0] == said
        another = (await answer(other, max_tokens=7))[0]
        assert another != said
        await first.replace_weights(first.read_weights(release(releases["1.1.0"]), lambda *_: None))
        assert (await answer(first, max_tokens=7))[0] == another
        assert (await answer(first, max_tokens=7, seed=1))[0] != another

    asyncio.run(scenario())


def test_rows_are_limited_and_freed(releases: dict[str, Path]) -> None:
    """What finds no row waits and is refused after its time; a stream that is closed frees its row; close ends all."""
    engine = load(releases["1.0.0"], Limits(max_prompt_tokens=50, max_wait=0.05), rows=1)

    async def scenario() -> None:
        stream = cast("Any", engine.stream(ASKED, Sampling(max_tokens=10_000)))
        async with aclosing(stream):
            await anext(stream)
            assert engine.usage().running == 1
            assert engine.usage().kv_tokens > 10_000
            with pytest.raises(QueueTimeout):
                await answer(engine)
        assert engine.usage().running == engine.usage().waiting == engine.usage().kv_tokens == 0
        await answer(engine, max_tokens=1)
        with pytest.raises(PromptTooLong):
            await anext(engine.stream([{"role": "user", "content": "long" * 100}], Sampling()))
        with pytest.raises(Refused):
            await answer(engine, grammar=Grammar.of_document({}))
        stream = cast("Any", engine.stream(ASKED, Sampling(max_tokens=10_000)))
        await anext(stream)
        engine.close()
        with pytest.raises(RuntimeError):
            await anext(stream)
        with pytest.raises(RuntimeError):
            await answer(engine)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-100])),
        ("model.safetensors", lambda path: path.unlink()),
        ("config.json", lambda path: path.write_text("{")),
        ("config.json", lambda path: path.write_text(json.dumps({"architectures": ["BertModel"]}))),
        ("tokenizer.json", lambda path: path.unlink()),
        ("chat_template.jinja", lambda path: path.unlink()),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(
    releases: dict[str, Path], name: str, damage: Callable[[Path], object]
) -> None:
    """A file that is missing, cut short, or of another architecture: a ReleaseError that names it."""
    damage(releases["1.0.0"] / "model" / name)
    with pytest.raises(ReleaseError, match=name):
        load(releases["1.0.0"])


def test_only_the_setting_selects_it(releases: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    """Without GLM_ENGINE=dummy the model engine loads a release; with it, a warning is logged."""
    settings = Settings(slot="blue", threads=1)
    assert settings.engine == "model"
    engine: WorkerEngine = loader.load(release(releases["1.0.0"]), settings, lambda *_: None)
    engine.close()
    assert type(engine).__name__ == "ModelEngine"
    with caplog.at_level(logging.WARNING, "gunicorn.error"):
        engine = loader.load(release(releases["1.0.0"]), Settings(slot="blue", engine="dummy"), lambda *_: None)
    assert isinstance(engine, DummyEngine)
    assert "GLM_ENGINE=dummy" in caplog.text


def test_it_needs_no_torch(releases: dict[str, Path]) -> None:
    """A worker with it imports neither torch nor transformers."""
    code = (
        "import sys, pathlib\nimport service.process.worker\nfrom service.engine import loader\n"
        "from service.contract.engine_settings import EngineSettings\nfrom service.model.release import Release\n"
        "from service.settings import Settings\n"
        "settings = Settings(slot='blue', engine='dummy')\nloader.preload(settings)\n"
        "release = Release(pathlib.Path(sys.argv[1]), '1', EngineSettings(), ())\n"
        "loader.load(release, settings, lambda *_: None).warm_up(lambda *_: None)\n"
        "print(sorted({'torch', 'transformers', 'scipy', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(releases["1.0.0"])], cwd=CODE, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr
