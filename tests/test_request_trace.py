"""`glmctl trace`: what became of a request, from its line in the journal or in a log that is text."""

from __future__ import annotations

import json
import logging
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.cli import glmctl
from deploy.errors import Refused
from deploy.host import Host
from deploy.journal import announcement
from deploy.journal.journal import Journal, begin
from deploy.journal.record import Record
from deploy.systemd.sandbox import LOG_VARIABLE
from service.contract import access_line
from service.contract.route import MAX_NOTE, UNKNOWN, Route
from service.contract.samples import BROKEN_OFF
from service.handover.plain_errors import KINDS
from service.logs.access import Entry
from service.timing import AnswerTimes
from tests.host_files import add_generation
from tests.test_refusals import hostile

TIMES = AnswerTimes(10.0, 10.25, 11.0, 13.0)
ROUTE = Route("blue/3/77", "green/1/88", 2, 9.5)
ENTRY = Entry(
    *("POST", "/v1/chat/completions", 200, 3.1, "10.0.0.1", "1.1.0", "my id"),
    first=1.0, tokens=(7, 3), times=TIMES, route=ROUTE, handoff=0.004,
)  # fmt: skip

many = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
seconds = st.floats(0, 1000)


@many
@given(
    texts=st.tuples(*[hostile] * 5),
    reason=st.none() | hostile,
    status=st.sampled_from([200, 404, 429, 503, BROKEN_OFF]),
    first=st.none() | seconds,
    handoff=st.none() | seconds,
    tokens=st.none() | st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    times=st.none() | st.just(TIMES),
    route=st.none() | st.just(ROUTE),
)
def test_a_line_of_text_is_read_as_its_fields(texts: tuple[str, ...], reason: str | None, **parts: Any) -> None:
    """Whatever a client sends: as text the line says what its fields in the journal say."""
    method, path, client, version, request_id = texts
    entry = Entry(method, path, parts.pop("status"), 0.1, client, version, request_id, reason=reason, **parts)
    fields = {name: str(value) for name, value in entry.fields().items()}
    fields["MODEL_VERSION"] = fields["MODEL_VERSION"].replace(" ", r"\x20")
    assert access_line.parse(entry.text) == fields


def test_other_lines_are_none() -> None:
    """Such as those of gates, refusals and tracebacks."""
    for text in (
        "gate open (blue 1.0.0)",
        "refused with 400: 1.2.3.4 - -: no",
        "request req-1 failed",
        "Traceback:",
        "",
    ):
        assert access_line.parse(text) is None


@many
@given(hops=st.lists(st.sampled_from(["blue/1/10", "green/999999999/4194304"]), min_size=1, max_size=5))
def test_a_route_is_read_as_it_was_written(hops: list[str]) -> None:
    """From worker to worker: who accepted the connection, who passed it on last, and how often."""
    route = None
    for worker in hops:
        note = Route.through(worker, route).note
        assert len(note) <= MAX_NOTE
        route = Route.parse(note)
    assert route
    assert route[:3] == (hops[0], hops[-1], len(hops))


@many
@given(st.binary(max_size=300) | st.text().map(str.encode))
def test_a_damaged_note_is_an_unknown_route(note: bytes) -> None:
    """Of an earlier version, which sends none, or of whatever may write to the socket."""
    assert Route.parse(note)[:3] == (UNKNOWN, UNKNOWN, 1)


# the command


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host(True, tmp_path, tmp_path / "run", tmp_path / "state", tmp_path, tmp_path / "glm.env")
    monkeypatch.setattr(Host, "find", lambda **_: found)
    monkeypatch.delenv("GLM_ACCESS_LOG", raising=False)
    add_generation(found.runtime, "green", 4, "1.1.0", "ready")
    return found


def shown(*words: str) -> str:
    done = CliRunner().invoke(glmctl, ["trace", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def in_sandbox(host: Host, monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> None:
    lines = [
        "a line of systemd",
        *(f"[{datetime.now(UTC):%Y-%m-%d %H:%M:%S %z}] [{os.getpid()}] [INFO] {one.text}" for one in entries),
    ]
    (host.root / "log").write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setenv(LOG_VARIABLE, str(host.root / "log"))


def in_journal(host: Host, monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> None:
    """A journalctl that prints the entries that a real one would for the match on the request."""
    monkeypatch.delenv(LOG_VARIABLE, raising=False)
    own = {"SLOT": "green", "GENERATION": "4", "_PID": str(os.getpid())}
    own["__REALTIME_TIMESTAMP"] = str(int(datetime.now(UTC).timestamp() * 1_000_000))
    found = [{"MESSAGE": "gate open", **own}, {"MESSAGE": "request my id failed", "REQUEST_ID": r"my\x20id", **own}]
    found += [
        {"MESSAGE": one.text, **own, **{name: str(value) for name, value in one.fields().items()}} for one in entries
    ]
    (host.root / "bin").mkdir()
    (host.root / "entries").write_text("".join(f"{json.dumps(one)}\n" for one in found))
    script = f'#!/bin/sh\necho "$@" >> {host.root}/calls\nexec cat {host.root}/entries\n'
    (host.root / "bin/journalctl").write_text(script)
    (host.root / "bin/journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{host.root}/bin:{os.environ['PATH']}")


@pytest.mark.parametrize("put", [in_sandbox, in_journal])
def test_a_request_is_told_from_its_acceptance_to_its_end(
    host: Host, monkeypatch: pytest.MonkeyPatch, put: Any
) -> None:
    """Alike from both logs; with the rollout during which it ended. Others, and lines of other kinds, are not."""
    journal = Journal(host)
    (host.state / "history").mkdir(parents=True)
    entry = begin(journal, "deploy", "1.1.0", "green")
    entry.record.started_at = "2026-01-01T00:00:00+00:00"
    entry.enter("preflight")
    put(host, monkeypatch, ENTRY._replace(request_id="other"), ENTRY)
    worker = f"green/4/{os.getpid()}"
    [found] = json.loads(shown("my id", "--json"))["requests"]
    assert datetime.fromisoformat(found.pop("at"))
    assert found == {
        "id": r"my\x20id", "accepted_by": "blue/3/77", "handed_over_by": "green/1/88", "handovers": 2,
        "answered_by": worker, "method": "POST", "path": "/v1/chat/completions", "status": 200, "outcome": "answered",
        "reason": None, "version": "1.1.0", "client": "10.0.0.1", "milliseconds": 3100, "handoff": 4, "queue": 250,
        "prefill": 750, "decode": 2000, "first_token": 1000, "prompt_tokens": 7, "completion_tokens": 3,
        "rollout": entry.record.id,
    }  # fmt: skip
    text = shown("my id")
    assert "accepted by  blue/3/77\nhanded over  2 times, the last time by green/1/88\n" in text
    assert f"answered by  {worker}, version 1.1.0\noutcome      200, answered\n" in text
    assert (
        "3100 ms in all, handoff 4 ms, queue 250 ms, prefill 750 ms, decode 2000 ms, first token after 1000 ms" in text
    )
    assert f"during       rollout {entry.record.id}" in text


def test_the_journal_is_asked_for_the_request_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the field, with the id as it was written."""
    in_journal(host, monkeypatch, ENTRY)
    shown("my id")
    assert (host.root / "calls").read_text().rstrip().endswith(r"--output=json REQUEST_ID=my\x20id")


def test_outcomes_and_ways_are_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a request that was refused, one that was cut, and connections that stayed or came from nobody known."""
    plain = ENTRY._replace(route=None, handoff=None, times=None, tokens=None)
    refused = plain._replace(status=429, reason="the queue is full")
    cut = plain._replace(status=BROKEN_OFF, route=Route(UNKNOWN, UNKNOWN, 1, 0.0))
    in_sandbox(host, monkeypatch, refused, cut)
    first, second = shown("my id").split("\n\n")
    assert "429, refused: the queue is full" in first
    assert "one worker had the connection all the time" in first
    assert f"{BROKEN_OFF}, the answer was broken off" in second
    assert "by the service manager's store or an earlier version" in second


@pytest.mark.parametrize("put", [in_sandbox, in_journal])
@pytest.mark.parametrize(
    ("settings", "hint"),
    [("", "begins 20"), ("GLM_ACCESS_LOG=0", "turns the access log off"), ("GLM_ACCESS_LOG=0.1", "only that part")],
)
def test_a_request_without_a_line_is_a_clear_message(
    host: Host, monkeypatch: pytest.MonkeyPatch, settings: str, hint: str, put: Any
) -> None:
    """With what may be the reason: the log does not go back so far, is off, or has a part of the requests."""
    host.settings.write_text(settings)
    put(host, monkeypatch, ENTRY)
    with pytest.raises(Refused, match="no request nobody is in the log") as refusal:
        CliRunner().invoke(glmctl, ["trace", "nobody"], catch_exceptions=False)
    assert refusal.value.hint
    assert hint in refusal.value.hint
    assert re.search(r"the log of the servers begins 20\d\d-", refusal.value.hint)


def test_errors_have_the_id_of_their_request() -> None:
    """So that `journalctl REQUEST_ID=` shows the traceback beside the line."""
    from service.logs.journal import JournalHandler

    sent: list[dict[str, object]] = []
    handler = JournalHandler.__new__(JournalHandler)
    logging.Handler.__init__(handler)
    handler.send = lambda level, text, fields: sent.append(dict(fields))  # type: ignore[method-assign]
    record = logging.LogRecord("service", logging.ERROR, "file", 1, "request %s failed", ("req-1",), None)
    record.request_id = "req-1"
    handler.handle(record)
    assert sent == [{"LOGGER": "service", "REQUEST_ID": "req-1"}]


def test_the_page_names_every_field() -> None:
    """docs/logs.md has all that lines of requests and rollouts have, and every kind that the parser's refusals have."""
    page = (Path(__file__).resolve().parent.parent / "docs/logs.md").read_text()
    refused = ENTRY._replace(status=429, reason="the queue is full")
    record = Record(id="1", kind="deploy", version="1.1.0", slot="green", started_at="")
    for name in (*refused.fields(), *announcement.fields_of(record), "OUTCOME", *KINDS.values()):
        assert f"`{name}`" in page, name
