"""The log of refused requests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import refusals
from service.refusals import MAX_LINES, MAX_LINES_OF_ADDRESS, RefusalLog
from tests.test_app import client

LINE = re.compile(r"refused with (4\d\d): (\S+) (\S*) (\S*): ([ -~]*)")
MORE = re.compile(r"refused (\d+) more requests within [\d.]+ s, (\d+) of them from (\S+)")

many = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
TRICKS = ["\n", "a\r\nrefused with 400: x y z: w", "\x1b[2J", "\u2028", "\x7f", "\ud800"]
hostile = st.text(max_size=400) | st.sampled_from(TRICKS)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines that were logged since the last call."""

    def take() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    return take


@many
@given(address=hostile, method=hostile, path=hostile, reason=hostile)
def test_a_client_cannot_write_the_log(
    lines: Callable[[], list[str]], address: str, method: str, path: str, reason: str
) -> None:
    """Whatever a client sends, a refusal is one line of bounded length with printable ASCII alone, and its fields."""

    async def refuse() -> None:
        RefusalLog().add(address, method, path, 400, reason)

    lines()
    asyncio.run(refuse())
    (line,) = lines()
    assert len(line) < 1200
    assert line.isascii()
    assert line.isprintable()
    match = LINE.fullmatch(line)
    assert match
    assert match[5] == reason[:300].encode("unicode_escape").decode()[:300]


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(flood=st.lists(st.sampled_from(["10.0.0.1"] * 20 + ["10.0.0.2", ""]), max_size=300), pauses=st.integers(0, 3))
def test_the_rate_is_bounded_and_everything_is_counted(
    lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, flood: list[str], pauses: int
) -> None:
    """In each window at most MAX_LINES are logged, MAX_LINES_OF_ADDRESS of one address, and the rest is counted."""
    monkeypatch.setattr(refusals, "WINDOW", 0.02)

    async def refuse() -> None:
        log = RefusalLog()
        for _ in range(pauses + 1):
            lines()
            for address in flood:
                log.add(address, "GET", "/", 404, "no")
            await asyncio.sleep(0.05)
            found = lines()
            logged = [match[2] for line in found if (match := LINE.fullmatch(line))]
            more = [match for line in found if (match := MORE.fullmatch(line))]
            assert len(logged) + len(more) == len(found)
            assert len(logged) <= MAX_LINES
            assert len(more) <= 1
            for address in set(logged):
                assert logged.count(address) <= MAX_LINES_OF_ADDRESS
            assert len(logged) + sum(int(match[1]) for match in more) == len(flood)
            if len(set(flood)) <= MAX_LINES // MAX_LINES_OF_ADDRESS:  # nobody is hidden by another one
                assert {address or "local" for address in flood} == set(logged)

    asyncio.run(refuse())


def test_refused_requests_are_logged(lines: Callable[[], list[str]]) -> None:
    """Requests that are answered with 400 to 431 are logged with address, method, path and reason; others are not."""
    http = client()
    http.post("/v1/chat/completions?api_key=secret", content=b"{}", headers={"authorization": "Bearer secret"})
    http.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    http.get("/v1/no%0asuch%1b[2J")
    http.delete("/healthz")
    http.get("/healthz")
    http.get("/v1/models")
    found = [LINE.fullmatch(line) for line in lines()]
    assert [match and match.groups()[:4] for match in found] == [
        ("400", "testclient", "POST", "/v1/chat/completions"),
        ("415", "testclient", "POST", "/v1/chat/completions"),
        ("404", "testclient", "GET", "/v1/no%0asuch%1b[2J"),
        ("405", "testclient", "DELETE", "/healthz"),
    ]
    assert found[0]
    assert "messages" in found[0][5]
    assert "secret" not in str(found)
