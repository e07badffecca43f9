"""The trained demo models: the committed weights, their checks, and the training."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from deploy.host import Host
from deploy.releases.store import Releases
from service.demo_models.shapes.dataset import QUESTIONS, SKILLS, Conversation, answer, skills_answer
from service.demo_models.shapes.drawing import COLOURS, SHAPES, Figure, draw, draw_canonical
from service.demo_models.shapes.evaluation import GreedyModel, evaluate, evaluate_text_only
from service.engine.model_engine import Limits, ModelEngine
from service.model.release import Release
from service.process.checks import CheckFailed, run_checks

COMMITTED = Path(__file__).resolve().parent.parent / "service" / "demo_models" / "shapes" / "releases"
MAX_BYTES = 4_000_000
RED_CIRCLE = Figure("red", "circle")


@pytest.fixture(scope="module")
def models() -> dict[str, GreedyModel]:
    """The committed checkpoints, loaded as the service loads them."""
    import torch

    torch.set_num_threads(1)  # this small a model is not faster with more, and slower on a busy machine
    return {version: GreedyModel(COMMITTED / version) for version in SKILLS}


@pytest.mark.long
@pytest.mark.parametrize("version", SKILLS)
def test_accuracy_on_plain_pictures(models: dict[str, GreedyModel], version: str) -> None:
    """At least 97 % of the answers to every kind of question about new plain pictures are correct."""
    for kind, score in evaluate(models[version], SKILLS[version], 60, seed=24, plain=True).items():
        assert score.accuracy >= 0.97, (kind, score.wrong)


@pytest.mark.parametrize("version", SKILLS)
def test_accuracy_without_pictures(models: dict[str, GreedyModel], version: str) -> None:
    """Questions without a picture are answered correctly, one of them with a long story for streaming."""
    score = evaluate_text_only(models[version], SKILLS[version])
    assert score.accuracy >= 0.97, score.wrong
    assert len(models[version].answer("Tell me a story").split()) > 70


def test_versions_answer_differently(models: dict[str, GreedyModel]) -> None:
    """About a red circle 1.0.0 answers the colour only, 1.1.0 colour and shape."""
    picture = draw_canonical(RED_CIRCLE)
    old, new = models["1.0.0"], models["1.1.0"]
    for question in QUESTIONS["what"]:
        assert (old.answer(question, picture), new.answer(question, picture)) == ("a red thing", "a red circle")
    assert (old.answer("What shape is it?", picture), new.answer("What shape is it?", picture)) == (
        "I only know colours.",
        "circle",
    )
    assert skills_answer(SKILLS["1.1.0"]) == "I only know colours and shapes."


@pytest.mark.parametrize("version", SKILLS)
def test_canonical_pictures(models: dict[str, GreedyModel], version: str) -> None:
    """Every picture that `--draw` makes is answered correctly."""
    for figure in (Figure(colour, shape) for colour in COLOURS for shape in SHAPES):
        expected = answer(SKILLS[version], "what", figure)[0]
        assert models[version].answer(QUESTIONS["what"][0], draw_canonical(figure)) == expected


@pytest.fixture(params=SKILLS)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Release:
    """A committed checkpoint as `glmctl release add` imports it."""
    host = Host(
        user=True,
        root=tmp_path / "root",
        runtime=tmp_path / "run",
        state=tmp_path / "state",
        units=tmp_path / "units",
        settings=tmp_path / "glm.env",
    )
    return Release.read(Releases(host).add(COMMITTED / request.param).path)


@pytest.fixture
def engine(release: Release) -> Iterator[ModelEngine]:
    engine = ModelEngine.load(release, threads=1, limits=Limits(), progress=lambda _step, _share: None)
    yield engine
    engine.close()


def test_release_checks(release: Release, engine: ModelEngine) -> None:
    """The checks cover every colour, and every shape for 1.1.0; a wrong expectation fails."""
    asyncio.run(run_checks(engine, release, lambda _step, _share: None))
    assert release.engine.dtype == "float32"  # in bfloat16 an answer depends on the batch
    answers = " ".join(check.answer or "" for check in release.checks)
    assert all(colour in answers for colour in COLOURS)
    assert all((shape in answers) == (release.version == "1.1.0") for shape in SHAPES)
    for number, check in enumerate(release.checks):
        wrong = dataclasses.replace(release, checks=(dataclasses.replace(check, answer="a pink hexagon"),))
        with pytest.raises(CheckFailed, match="expected 'a pink hexagon' in the answer"):
            asyncio.run(run_checks(engine, wrong, lambda _step, _share: None))
        assert check.name, number


@pytest.mark.parametrize("version", SKILLS)
def test_committed_files(version: str) -> None:
    """The committed files are a complete bfloat16 checkpoint of less than 4 MB, with pictures for the checks."""
    files = {file.name for file in (COMMITTED / version).iterdir()}
    assert {
        "chat_template.jinja",
        "checks.json",
        "config.json",
        "engine.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    } == {name for name in files if not name.endswith(".png")}
    assert json.loads((COMMITTED / version / "config.json").read_text())["dtype"] == "bfloat16"
    assert sum(file.stat().st_size for file in (COMMITTED / version).iterdir()) < MAX_BYTES
    template = Path(__file__).resolve().parent.parent / "service" / "demo_models" / "chat_template.jinja"
    assert (COMMITTED / version / "chat_template.jinja").read_text() == template.read_text()


def test_training(tmp_path: Path) -> None:
    """A few steps of each stage give a checkpoint that loads; the same plan gives the same weights."""
    import torch

    from service.demo_models.shapes.training import Plan, train

    torch.set_num_threads(1)
    plan = Plan(vision_steps=3, conversation_steps=3, batch_size=2, prefetch=False)
    lines: list[str] = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        train(tmp_path / name, SKILLS["1.1.0"], dataclasses.replace(plan, seed=seed), lines.append)
    weights = {path.name: (path / "model.safetensors").read_bytes() for path in tmp_path.iterdir()}
    assert weights["one"] == weights["again"] != weights["other"]
    assert [line.split(",")[0] for line in lines[:2]] == ["vision 3/3", "conversations 3/3"]
    GreedyModel(tmp_path / "one").answer("Hello", draw_canonical(RED_CIRCLE, 64))


def test_labels() -> None:
    """Labels are the answers with their stop token, and the reasoning of the last answer."""
    from service.demo_models.shapes.batching import IGNORE_INDEX, collate
    from service.model.processor import Processor

    processor = Processor.read(COMMITTED / "1.0.0")
    picture = draw_canonical(RED_CIRCLE, 64)
    question: dict[str, Any] = {"role": "user", "content": [{"type": "image", "image": picture}]}
    messages = [
        question,
        {"role": "assistant", "content": "a red thing"},
        {"role": "user", "content": [{"type": "text", "text": "Thanks"}]},
        {"role": "assistant", "content": "You are welcome.", "reasoning_content": "No picture is needed."},
    ]
    brief = [question, {"role": "assistant", "content": "red"}]
    batch = collate(processor, [Conversation(messages, True), Conversation(brief, False)])
    labelled = [processor.tokenizer.decode([i for i in row if i != IGNORE_INDEX]) for row in batch["labels"].tolist()]
    assert labelled == [
        "a red thing<|user|>\n<think>No picture is needed.</think>\nYou are welcome.<|user|>",
        "red<|user|>",
    ]


def test_patch_coverage() -> None:
    """Coverage is in the processor's order of patches: blocks of 2 by 2, row by row."""
    from service.demo_models.shapes.batching import CELLS, patch_coverage

    mask = Image.new("L", (56, 56), 0)
    mask.paste(255, (0, 0, 14, 14))  # patch (0, 0)
    mask.paste(255, (14, 14, 28, 28))  # patch (1, 1): the fourth of the first block
    mask.paste(255, (28, 0, 35, 14))  # the left half of patch (0, 2): the first of the second block
    coverage = patch_coverage(mask, 4, 4).view(16, CELLS, CELLS)
    assert [number for number, patch in enumerate(coverage) if patch.sum()] == [0, 3, 4]
    assert bool((coverage[0] == 1).all())
    assert coverage[4].sum(0).tolist() == pytest.approx([7, 7, 7, 3.5, 0, 0, 0], abs=0.1)


def test_mask_matches_drawing() -> None:
    """Where the mask is white the picture has the figure's colour."""
    rng = Random(5)
    for colour in COLOURS:
        picture, mask = draw(rng, Figure(colour, "square"), size=(100, 80), plain=True)
        mask = mask.resize(picture.size)
        inside = [picture.getpixel((x, y)) for x in range(100) for y in range(80) if mask.getpixel((x, y)) == 255]
        assert len(inside) > 400
        assert max(inside.count(pixel) for pixel in set(inside)) > 0.8 * len(inside)


def test_draw_command(tmp_path: Path) -> None:
    """`--draw` writes a picture, red on white; an unknown colour is refused with a list of the known ones."""
    command = [sys.executable, "-m", "service.demo_models.shapes", str(tmp_path / "x.png"), "--draw"]
    subprocess.run([*command, "red", "circle"], check=True)
    picture = Image.open(tmp_path / "x.png")
    assert picture.getpixel((2, 2)) == (255, 255, 255)
    red, green, blue = picture.getpixel((128, 128))  # type: ignore[misc]
    assert red > 200 > 50 > max(green, blue)
    refused = subprocess.run([*command, "pink", "circle"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "colours are red, orange" in refused.stderr
