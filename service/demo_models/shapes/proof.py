"""The proof of a trained checkpoint: fresh pictures, and the checks that its release carries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from service.demo_models.shapes.drawing import COLOURS, SHAPES, Thing, any_thing, draw, draw_plainly
from service.demo_models.shapes.lessons import QUESTIONS, Skills, answer, exchanges
from service.model import checkpoint
from service.model.release import EngineSettings

__all__ = ["Score", "Speaker", "examine", "examine_words", "write_checks"]

# bfloat16 on a CPU rounds by what else is in the batch; in float32 a version's greedy answers never change
ENGINE: dict[str, Any] = {"dtype": "float32", "rows": 32, "kv_tokens": 131_072, "max_new_tokens": 256}
LONGEST = 200  # tokens; the story has fewer


class Speaker:
    """Asks a checkpoint greedily, by transformers' own generate."""

    def __init__(self, path: Path) -> None:
        self._checkpoint = checkpoint.load(
            path, EngineSettings(device="cpu", dtype="float32"), lambda _step, _share: None
        )

    def answer(self, question: str, picture: Any = None, *, thinking: bool | None = False) -> str:
        """Give the answer without its thought."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if picture is not None:
            content.insert(0, {"type": "image", "image": picture})
        inputs = self._checkpoint.processor.inputs([{"role": "user", "content": content}], thinking)
        said = self._checkpoint.model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST)
        text = self._checkpoint.processor.text(said[0, inputs["input_ids"].shape[1] :].tolist())
        return text.split("</think>")[-1].strip()


@dataclass(frozen=True)
class Score:
    """How many answers were right, and those that were not, as (question, wanted, got)."""

    asked: int
    wrong: tuple[tuple[str, str, str], ...]

    @property
    def right(self) -> float:
        """The share of right answers, 0.0 to 1.0."""
        return 1 - len(self.wrong) / self.asked


def examine(
    speaker: Speaker,
    skills: Skills,
    pictures: int,
    *,
    seed: int = 987_654,
    size: tuple[int, int] | None = None,
    plain: bool = False,
) -> dict[str, Score]:
    """Ask about so many fresh pictures, every other time with a thought; a score for each kind of question."""
    rng = Random(seed)  # noqa: S311
    wrong: dict[str, list[tuple[str, str, str]]] = {kind: [] for kind in QUESTIONS}
    for number in range(pictures):
        thing = any_thing(rng)
        picture, _ = draw(rng, thing, size=size, plain=plain)
        for kind, wordings in QUESTIONS.items():
            question, wanted = wordings[number % len(wordings)], answer(skills, kind, thing)[0]
            got = speaker.answer(question, picture, thinking=None if number % 2 else False)
            if got != wanted:
                wrong[kind].append((f"{question} ({thing.colour} {thing.shape})", wanted, got))
    return {kind: Score(pictures, tuple(found)) for kind, found in wrong.items()}


def examine_words(speaker: Speaker, skills: Skills) -> Score:
    """Ask every question that needs no picture."""
    asked = [(question, reply) for reply, questions in exchanges(skills).items() for question in questions]
    wrong = []
    for number, (question, wanted) in enumerate(asked):
        got = speaker.answer(question, thinking=None if number % 2 else False)
        if got != wanted:
            wrong.append((question, wanted, got))
    return Score(len(asked), tuple(wrong))


def write_checks(out: Path, skills: Skills) -> None:
    """Write what the checkpoint's release must answer, with the pictures, and how its engine is to run."""
    checks: list[dict[str, Any]] = [{"name": "hello", "question": "Hello", "answer": "Show me a picture"}]
    for number, colour in enumerate(COLOURS):
        thing = Thing(colour, SHAPES[number % len(SHAPES)])
        name = f"{thing.colour}-{thing.shape}"
        draw_plainly(thing).save(out / f"{name}.png", optimize=True)
        question = QUESTIONS["what"][0]
        checks.append(
            {"name": name, "image": f"{name}.png", "question": question, "answer": answer(skills, "what", thing)[0]}
        )
    (out / "checks.json").write_text(json.dumps(checks, indent=2) + "\n")
    (out / "engine.json").write_text(json.dumps(ENGINE, indent=2) + "\n")
