"""The tiny model that answers truly: the committed weights, their checks, and the training that makes them."""

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
from service.demo_models.shapes.drawing import COLOURS, SHAPES, Thing, draw, draw_plainly
from service.demo_models.shapes.lessons import QUESTIONS, SKILLS, Conversation, answer, limits
from service.demo_models.shapes.proof import Speaker, examine, examine_words
from service.engine.model_engine import Limits, ModelEngine
from service.model.release import Release
from service.process.checks import CheckFailed, run_checks

COMMITTED = Path(__file__).resolve().parent.parent / "service" / "demo_models" / "shapes" / "releases"
FEW_MEGABYTES = 4_000_000
RED_CIRCLE = Thing("red", "circle")


@pytest.fixture(scope="module")
def speakers() -> dict[str, Speaker]:
    """The committed checkpoints, loaded as the service loads them."""
    import torch

    torch.set_num_threads(1)  # so small a model is no faster with two, and far slower where others use them
    return {version: Speaker(COMMITTED / version) for version in SKILLS}


@pytest.mark.parametrize("version", SKILLS)
def test_committed_weights_know_what_their_version_claims(speakers: dict[str, Speaker], version: str) -> None:
    """Of fresh pictures, upright on a light ground, at least 97 % get the true answer to every kind of question."""
    for kind, score in examine(speakers[version], SKILLS[version], 60, seed=24, plain=True).items():
        assert score.right >= 0.97, (kind, score.wrong)


@pytest.mark.parametrize("version", SKILLS)
def test_questions_without_a_picture_get_sensible_answers(speakers: dict[str, Speaker], version: str) -> None:
    """Greetings, help, thanks, and a story long enough to watch it stream."""
    score = examine_words(speakers[version], SKILLS[version])
    assert score.right >= 0.97, score.wrong
    assert len(speakers[version].answer("Tell me a story").split()) > 70


def test_the_upgrade_can_be_seen(speakers: dict[str, Speaker]) -> None:
    """Of a red circle 1.0.0 says the colour, and that it knows no more; 1.1.0 says the shape too."""
    picture = draw_plainly(RED_CIRCLE)
    old, new = speakers["1.0.0"], speakers["1.1.0"]
    for question in QUESTIONS["what"]:
        assert (old.answer(question, picture), new.answer(question, picture)) == ("a red thing", "a red circle")
    assert (old.answer("What shape is it?", picture), new.answer("What shape is it?", picture)) == (
        "I only know colours.",
        "circle",
    )
    assert limits(SKILLS["1.1.0"]) == "I only know colours and shapes."


@pytest.mark.parametrize("version", SKILLS)
def test_every_plainly_drawn_picture_is_told_rightly(speakers: dict[str, Speaker], version: str) -> None:
    """All pictures that `--draw` makes, which are those that a person is offered, are answered without a mistake."""
    for thing in (Thing(colour, shape) for colour in COLOURS for shape in SHAPES):
        wanted = answer(SKILLS[version], "what", thing)[0]
        assert speakers[version].answer(QUESTIONS["what"][0], draw_plainly(thing)) == wanted


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
    made = ModelEngine.load(release, threads=1, limits=Limits(), progress=lambda _step, _share: None)
    yield made
    made.close()


def test_the_releases_pass_their_own_checks_and_no_others(release: Release, engine: ModelEngine) -> None:
    """Every colour is asked for before READY, shapes where they are known; a wrong expectation fails the release."""
    asyncio.run(run_checks(engine, release, lambda _step, _share: None))
    assert release.engine.dtype == "float32"  # else an answer would depend on what else is in the batch
    answers = " ".join(check.answer or "" for check in release.checks)
    assert all(colour in answers for colour in COLOURS)
    assert all((shape in answers) == (release.version == "1.1.0") for shape in SHAPES)
    for number, check in enumerate(release.checks):
        wrong = dataclasses.replace(release, checks=(check.model_copy(update={"answer": "a pink hexagon"}),))
        with pytest.raises(CheckFailed, match="expected 'a pink hexagon' in the answer"):
            asyncio.run(run_checks(engine, wrong, lambda _step, _share: None))
        assert check.name, number


@pytest.mark.parametrize("version", SKILLS)
def test_the_committed_files_are_a_whole_small_checkpoint(version: str) -> None:
    """All that Hugging Face writes, in bfloat16 and a few megabytes, with pictures for the checks."""
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
    assert sum(file.stat().st_size for file in (COMMITTED / version).iterdir()) < FEW_MEGABYTES
    template = Path(__file__).resolve().parent.parent / "service" / "demo_models" / "chat_template.jinja"
    assert (COMMITTED / version / "chat_template.jinja").read_text() == template.read_text()


def test_training_runs_and_repeats_itself(tmp_path: Path) -> None:
    """A few steps of the whole course give a checkpoint that loads; one plan gives the same weights twice."""
    import torch

    from service.demo_models.shapes.training import Plan, train

    torch.set_num_threads(1)
    plan = Plan(looking=3, talking=3, batch=2, ahead=False)
    lines: list[str] = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        train(tmp_path / name, SKILLS["1.1.0"], dataclasses.replace(plan, seed=seed), lines.append)
    weights = {path.name: (path / "model.safetensors").read_bytes() for path in tmp_path.iterdir()}
    assert weights["one"] == weights["again"] != weights["other"]
    assert [line.split(",")[0] for line in lines[:2]] == ["looking 3/3", "talking 3/3"]
    Speaker(tmp_path / "one").answer("Hello", draw_plainly(RED_CIRCLE, 64))


def test_only_answers_are_learned() -> None:
    """Labels are exactly the answers, the last with its thought if it has one, each up to the turn that ends it."""
    from service.demo_models.shapes.batches import IGNORED, spoken
    from service.model.processor import Processor

    processor = Processor.read(COMMITTED / "1.0.0")
    picture = draw_plainly(RED_CIRCLE, 64)
    asked: dict[str, Any] = {"role": "user", "content": [{"type": "image", "image": picture}]}
    messages = [
        asked,
        {"role": "assistant", "content": "a red thing"},
        {"role": "user", "content": [{"type": "text", "text": "Thanks"}]},
        {"role": "assistant", "content": "You are welcome.", "reasoning_content": "No picture is needed."},
    ]
    brief = [asked, {"role": "assistant", "content": "red"}]
    batch = spoken(processor, [Conversation(messages, True), Conversation(brief, False)])
    learned = [processor.tokenizer.decode([i for i in row if i != IGNORED]) for row in batch["labels"].tolist()]
    assert learned == [
        "a red thing<|user|>\n<think>No picture is needed.</think>\nYou are welcome.<|user|>",
        "red<|user|>",
    ]


def test_coverage_follows_the_order_of_the_patches() -> None:
    """Cells are told patch by patch as the processor orders them: squares of two by two, row by row."""
    from service.demo_models.shapes.batches import CELLS, cover

    mask = Image.new("L", (56, 56), 0)
    mask.paste(255, (0, 0, 14, 14))  # patch (0, 0)
    mask.paste(255, (14, 14, 28, 28))  # patch (1, 1): the fourth of the first square
    mask.paste(255, (28, 0, 35, 14))  # the left half of patch (0, 2): the first of the second square
    shares = cover(mask, 4, 4).view(16, CELLS, CELLS)
    assert [number for number, patch in enumerate(shares) if patch.sum()] == [0, 3, 4]
    assert bool((shares[0] == 1).all())
    assert shares[4].sum(0).tolist() == pytest.approx([7, 7, 7, 3.5, 0, 0, 0], abs=0.1)


def test_a_drawing_and_its_mask_agree() -> None:
    """Where the mask is white the picture has the shape's colour, elsewhere the ground's."""
    rng = Random(5)
    for colour in COLOURS:
        picture, mask = draw(rng, Thing(colour, "square"), size=(100, 80), plain=True)
        mask = mask.resize(picture.size)
        inside = [picture.getpixel((x, y)) for x in range(100) for y in range(80) if mask.getpixel((x, y)) == 255]
        assert len(inside) > 400
        assert max(inside.count(pixel) for pixel in set(inside)) > 0.8 * len(inside)


def test_the_command_draws_a_picture(tmp_path: Path) -> None:
    """`--draw` writes one, red on white, and says which colours and shapes there are when asked for another."""
    command = [sys.executable, "-m", "service.demo_models.shapes", str(tmp_path / "x.png"), "--draw"]
    subprocess.run([*command, "red", "circle"], check=True)
    picture = Image.open(tmp_path / "x.png")
    assert picture.getpixel((2, 2)) == (255, 255, 255)
    red, green, blue = picture.getpixel((128, 128))  # type: ignore[misc]
    assert red > 200 > 50 > max(green, blue)
    refused = subprocess.run([*command, "pink", "circle"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "colours are red, orange" in refused.stderr
