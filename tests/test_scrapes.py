"""However many clients ask for the metrics, they are rendered a few times a second."""

from __future__ import annotations

import asyncio
import time

import pytest

from service import metrics
from service.api.scrapes import Scrapes


def test_requests_share_what_is_rendered_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty clients that ask all the time get values of after their request, from few renderings."""
    count, rendered = 0, 0

    def render() -> bytes:
        nonlocal rendered
        rendered += 1
        return str(count).encode()

    monkeypatch.setattr(metrics, "render", render)
    scrapes = Scrapes()

    async def ask(until: float) -> int:
        nonlocal count
        answers = 0
        while time.monotonic() < until:
            count += 1
            asked = count
            assert int(await scrapes.take()) >= asked
            answers += 1
        return answers

    async def scenario() -> list[int]:
        began = time.monotonic()
        await scrapes.take()
        assert time.monotonic() - began < 0.1, "the first one does not wait"
        return await asyncio.gather(*(ask(began + 1) for _ in range(50)))

    answers = asyncio.run(scenario())
    assert rendered <= 18
    assert min(answers) >= 3


def test_a_client_that_goes_away_takes_no_answer_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its request is cancelled, and the rendering goes on."""
    monkeypatch.setattr(metrics, "render", lambda: b"metrics")
    scrapes = Scrapes()

    async def scenario() -> bytes:
        first = asyncio.create_task(scrapes.take())
        second = asyncio.create_task(scrapes.take())
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(scenario()) == b"metrics"
