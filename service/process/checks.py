"""Runs a release's checks: questions that it must answer correctly before it becomes ready."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from service.chat import images
from service.contract.checks import Check
from service.engine import Delta, Engine, Sampling
from service.model.release import Release

__all__ = ["CheckFailed", "run_checks"]

MAX_PIXELS = 100_000_000  # of an image, before decoding; higher than for clients, because the operator supplies it


class CheckFailed(Exception):
    """The release failed a check; the text has the question, the expected and the actual answer."""


async def run_checks(engine: Engine, release: Release, progress: Callable[[str, float], None]) -> None:
    """Run the release's checks in order, greedily and without thinking; raises CheckFailed at the first failure.

    `progress` is called before each check and at the end, with the share of checks that have passed, 0.0 to 1.0.
    """
    for count, check in enumerate(release.checks):
        progress("checking", count / len(release.checks))
        await _run(engine, release, check)
    progress("checking", 1.0)


async def _run(engine: Engine, release: Release, check: Check) -> None:
    try:
        reply = await _ask(engine, _message(release, check), check.max_tokens)
    except Exception as error:
        raise CheckFailed(check.failure(str(error) or type(error).__name__)) from error
    if failure := check.judge(reply):
        raise CheckFailed(failure)


async def _ask(engine: Engine, message: dict[str, Any], max_tokens: int) -> str:
    sampling = Sampling(max_tokens=max_tokens, temperature=0)
    stream = engine.stream([message], sampling, thinking=False)
    return "".join([item.text async for item in stream if isinstance(item, Delta)])


def _message(release: Release, check: Check) -> dict[str, Any]:
    if check.image is None:
        return {"role": "user", "content": check.question}
    if check.image.startswith("data:"):
        image = images.from_data_url(check.image, max_pixels=MAX_PIXELS)
    else:
        file = (release.path / check.image).resolve()
        if not file.is_relative_to(release.path.resolve()):
            raise images.ImageError(f"the image {check.image} is not inside the release")
        image = images.from_file(file, max_pixels=MAX_PIXELS)
    return {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": check.question}]}
