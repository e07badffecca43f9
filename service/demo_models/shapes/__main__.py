"""Train and evaluate a small model of GLM-4.6V-Flash's architecture, or draw a picture to ask about."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

from service.demo_models.shapes.dataset import SKILLS, Skills
from service.demo_models.shapes.drawing import COLOURS, SHAPES, Figure, draw_canonical

MIN_ACCURACY = 0.97  # on new plain pictures, and without pictures
SIZES = ((56, 56), (84, 84), (224, 224), (640, 480), (1920, 1080))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 1 if the accuracy is below MIN_ACCURACY."""
    parser = argparse.ArgumentParser(prog="python -m service.demo_models.shapes", description=__doc__)
    parser.add_argument("out", metavar="OUT", type=Path, help="directory of the checkpoint, or file of the picture")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--version", choices=SKILLS, help="train the checkpoint of this version")
    action.add_argument(
        "--draw",
        nargs=2,
        metavar=("COLOUR", "SHAPE"),
        help=f"draw a picture; colours: {', '.join(COLOURS)}; shapes: {', '.join(SHAPES)}",
    )
    parser.add_argument("--check", type=int, default=300, metavar="N", help="evaluate on N pictures (default: 300)")
    parser.add_argument("--prove-only", action="store_true", help="evaluate an existing checkpoint, do not train")
    args = parser.parse_args(argv)
    if args.draw:
        colour, shape = args.draw
        if colour not in COLOURS or shape not in SHAPES:
            parser.error(f"cannot draw {colour} {shape}: colours are {', '.join(COLOURS)}; shapes {', '.join(SHAPES)}")
        draw_canonical(Figure(colour, shape)).save(args.out, optimize=True)
        return 0
    skills = SKILLS[args.version]
    if not args.prove_only:
        _train(args.out, args.version)
    return 0 if not args.check or _evaluate(args.out, skills, args.check) else 1


def _train(out: Path, version: str) -> None:
    import torch

    from service.demo_models.shapes.evaluation import write_checks
    from service.demo_models.shapes.training import PLANS, train

    torch.set_num_threads(1)  # for the same order of sums everywhere; batches are generated on another core
    started = time.perf_counter()
    train(out, SKILLS[version], PLANS[version], _print)
    write_checks(out, SKILLS[version])
    size = sum(file.stat().st_size for file in out.iterdir())
    _print(f"{out}: {size / 1e6:.2f} MB, {time.perf_counter() - started:.0f} s")


def _evaluate(out: Path, skills: Skills, pictures: int) -> bool:
    from service.demo_models.shapes.evaluation import GreedyModel, Score, evaluate, evaluate_text_only

    def report(title: str, scores: Iterable[tuple[str, Score]]) -> bool:
        results = list(scores)
        _print(f"{title}: " + ", ".join(f"{kind} {100 * score.accuracy:.1f} %" for kind, score in results))
        for _, score in results:
            for question, expected, actual in score.wrong[:3]:
                _print(f"  {question}: expected {expected!r}, got {actual[:60]!r}")
        return all(score.accuracy >= MIN_ACCURACY for _, score in results)

    model = GreedyModel(out)
    good = report(f"{pictures} plain pictures", evaluate(model, skills, pictures, plain=True).items())
    good &= report("without pictures", [("text", evaluate_text_only(model, skills))])
    report(f"{pictures} varied pictures", evaluate(model, skills, pictures).items())
    for size in SIZES:
        count = max(pictures // 10, 1)
        report(
            f"{count} plain pictures of {size[0]} x {size[1]}",
            evaluate(model, skills, count, size=size, plain=True).items(),
        )
    return good


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(main())
