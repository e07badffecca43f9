"""Evaluation of a checkpoint on new pictures, and the checks and engine settings of its release."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from service.contract.engine_settings import EngineSettings
from service.demo_models.shapes.dataset import QUESTIONS, Skills, answer, text_only_answers
from service.demo_models.shapes.drawing import COLOURS, SHAPES, Figure, draw, draw_canonical, sample_figure
from service.model import checkpoint

__all__ = ["GreedyModel", "Score", "evaluate", "evaluate_text_only", "write_checks"]

# in bfloat16 on a CPU rounding depends on the batch; in float32 greedy answers do not change
ENGINE: dict[str, Any] = {"dtype": "float32", "rows": 32, "kv_tokens": 131_072, "max_new_tokens": 256}
MAX_NEW_TOKENS = 200  # the longest answer has fewer


class GreedyModel:
    """A checkpoint that answers by greedy decoding, with transformers' `generate`."""

    def __init__(self, path: Path) -> None:
        self._checkpoint = checkpoint.load(
            path, EngineSettings(device="cpu", dtype="float32"), lambda _step, _share: None
        )

    def answer(self, question: str, picture: Any = None, *, thinking: bool | None = False) -> str:
        """Return the answer without its reasoning."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if picture is not None:
            content.insert(0, {"type": "image", "image": picture})
        inputs = self._checkpoint.processor.inputs([{"role": "user", "content": content}], thinking)
        output = self._checkpoint.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        text = self._checkpoint.processor.text(output[0, inputs["input_ids"].shape[1] :].tolist())
        return text.split("</think>")[-1].strip()


@dataclass(frozen=True)
class Score:
    """The number of questions, and the wrong answers as (question, expected, actual)."""

    questions: int
    wrong: tuple[tuple[str, str, str], ...]

    @property
    def accuracy(self) -> float:
        """The fraction of correct answers, 0.0 to 1.0."""
        return 1 - len(self.wrong) / self.questions


def evaluate(
    model: GreedyModel,
    skills: Skills,
    pictures: int,
    *,
    seed: int = 987_654,
    size: tuple[int, int] | None = None,
    plain: bool = False,
) -> dict[str, Score]:
    """Return the score of each kind of question on `pictures` new pictures, every second one with reasoning."""
    rng = Random(seed)  # noqa: S311
    wrong: dict[str, list[tuple[str, str, str]]] = {kind: [] for kind in QUESTIONS}
    for number in range(pictures):
        figure = sample_figure(rng)
        picture, _ = draw(rng, figure, size=size, plain=plain)
        for kind, wordings in QUESTIONS.items():
            question, expected = wordings[number % len(wordings)], answer(skills, kind, figure)[0]
            actual = model.answer(question, picture, thinking=None if number % 2 else False)
            if actual != expected:
                wrong[kind].append((f"{question} ({figure.colour} {figure.shape})", expected, actual))
    return {kind: Score(pictures, tuple(answers)) for kind, answers in wrong.items()}


def evaluate_text_only(model: GreedyModel, skills: Skills) -> Score:
    """Return the score of all questions that need no picture."""
    pairs = [(question, reply) for reply, questions in text_only_answers(skills).items() for question in questions]
    wrong = []
    for number, (question, expected) in enumerate(pairs):
        actual = model.answer(question, thinking=None if number % 2 else False)
        if actual != expected:
            wrong.append((question, expected, actual))
    return Score(len(pairs), tuple(wrong))


def write_checks(out: Path, skills: Skills) -> None:
    """Write checks.json with its pictures, and engine.json, to the checkpoint's directory."""
    checks: list[dict[str, Any]] = [{"name": "hello", "question": "Hello", "answer": "Show me a picture"}]
    for number, colour in enumerate(COLOURS):
        figure = Figure(colour, SHAPES[number % len(SHAPES)])
        name = f"{figure.colour}-{figure.shape}"
        draw_canonical(figure).save(out / f"{name}.png", optimize=True)
        question = QUESTIONS["what"][0]
        checks.append(
            {"name": name, "image": f"{name}.png", "question": question, "answer": answer(skills, "what", figure)[0]}
        )
    (out / "checks.json").write_text(json.dumps(checks, indent=2) + "\n")
    (out / "engine.json").write_text(json.dumps(ENGINE, indent=2) + "\n")
