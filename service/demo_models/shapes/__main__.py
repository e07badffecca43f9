"""`python -m service.demo_models.shapes`: train a tiny model and prove it, or draw a picture to ask one about."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

from service.demo_models.shapes.drawing import COLOURS, SHAPES, Thing, draw_plainly
from service.demo_models.shapes.lessons import SKILLS, Skills

ENOUGH = 0.97  # of the answers about fresh pictures must be right
SIZES = ((56, 56), (84, 84), (224, 224), (640, 480), (1920, 1080))


def main(argv: list[str] | None = None) -> int:
    """Run the command; 1 when too many answers are wrong."""
    parser = argparse.ArgumentParser(prog="python -m service.demo_models.shapes", description=__doc__)
    parser.add_argument("out", metavar="OUT", type=Path, help="the checkpoint's directory, or the picture's file")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--version", choices=SKILLS, help="train the checkpoint of this version")
    what.add_argument(
        "--draw", nargs=2, metavar=("COLOUR", "SHAPE"), help=f"draw one of {', '.join(COLOURS)}; {', '.join(SHAPES)}"
    )
    parser.add_argument("--check", type=int, default=300, metavar="N", help="prove it with N pictures (default: 300)")
    parser.add_argument("--prove-only", action="store_true", help="prove the checkpoint that is there, train none")
    asked = parser.parse_args(argv)
    if asked.draw:
        colour, shape = asked.draw
        if colour not in COLOURS or shape not in SHAPES:
            parser.error(f"no {colour} {shape}: colours are {', '.join(COLOURS)}; shapes {', '.join(SHAPES)}")
        draw_plainly(Thing(colour, shape)).save(asked.out, optimize=True)
        return 0
    skills = SKILLS[asked.version]
    if not asked.prove_only:
        _train(asked.out, asked.version)
    return 0 if not asked.check or _prove(asked.out, skills, asked.check) else 1


def _train(out: Path, version: str) -> None:
    import torch

    from service.demo_models.shapes.proof import write_checks
    from service.demo_models.shapes.training import PLANS, train

    torch.set_num_threads(1)  # sums depend on how they are split; the lessons are made on another core meanwhile
    began = time.perf_counter()
    train(out, SKILLS[version], PLANS[version], _say)
    write_checks(out, SKILLS[version])
    size = sum(file.stat().st_size for file in out.iterdir())
    _say(f"{out}: {size / 1e6:.2f} MB, {time.perf_counter() - began:.0f} s")


def _prove(out: Path, skills: Skills, pictures: int) -> bool:
    from service.demo_models.shapes.proof import Score, Speaker, examine, examine_words

    def tell(what: str, scores: Iterable[tuple[str, Score]]) -> bool:
        found = list(scores)
        _say(f"{what}: " + ", ".join(f"{kind} {100 * score.right:.1f} %" for kind, score in found))
        for _, score in found:
            for question, wanted, got in score.wrong[:3]:
                _say(f"  {question}: {wanted!r} was wanted, {got[:60]!r} said")
        return all(score.right >= ENOUGH for _, score in found)

    speaker = Speaker(out)
    good = tell(f"{pictures} plain pictures", examine(speaker, skills, pictures, plain=True).items())
    good &= tell("without pictures", [("words", examine_words(speaker, skills))])
    tell(f"{pictures} pictures of every kind", examine(speaker, skills, pictures).items())
    for size in SIZES:
        few = max(pictures // 10, 1)
        tell(f"{few} plain of {size[0]} x {size[1]}", examine(speaker, skills, few, size=size, plain=True).items())
    return good


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(main())
