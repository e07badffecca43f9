"""What became of one request: which workers had its connection, what took how long, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Self

from deploy.journal.record import Record
from deploy.reports.log import Head
from service.contract import access_line
from service.contract.printable import word
from service.contract.route import UNKNOWN, worker_name
from service.contract.samples import BROKEN_OFF, CLIENT_GONE

__all__ = ["Trace", "first_time", "from_journal", "from_text"]

_OUTCOMES = {CLIENT_GONE: "the client had disconnected", BROKEN_OFF: "the answer was broken off"}
_MAX_ID = 128  # characters
_SECOND = 1_000_000  # of journald's times


@dataclass(frozen=True)
class Trace:
    """One request, of its line in the access log. Times are milliseconds; None: not known, or it has no such part.

    A worker is SLOT/GENERATION/PID. `accepted_by` accepted the connection; where that is not who answered, it was
    passed on `handovers` times, the last time by `handed_over_by`.
    """

    id: str
    at: str
    """When it ended (ISO 8601)."""
    accepted_by: str
    answered_by: str
    handed_over_by: str | None
    handovers: int
    method: str
    path: str
    status: int
    outcome: str
    reason: str | None
    version: str
    client: str
    milliseconds: int
    handoff: int | None
    """For which the request waited until who answered it had the connection."""
    queue: int | None
    prefill: int | None
    decode: int | None
    first_token: int | None
    """From the last byte of the request to the first piece of a streamed answer."""
    prompt_tokens: int | None
    completion_tokens: int | None
    rollout: str | None = None
    """The rollout during which it ended."""

    @classmethod
    def of(cls, fields: Mapping[str, str], at: datetime, worker: str) -> Self:
        """Return it of the fields of its line."""

        def number(name: str) -> int | None:
            return int(fields[name]) if name in fields else None

        status = int(fields["HTTP_STATUS"])
        return cls(
            id=fields["REQUEST_ID"],
            at=at.astimezone(UTC).isoformat(timespec="milliseconds"),
            accepted_by=fields.get("ACCEPTED_BY", worker),
            answered_by=worker,
            handed_over_by=fields.get("HANDED_OVER_BY"),
            handovers=number("HANDOVERS") or 0,
            method=fields["HTTP_METHOD"],
            path=fields["HTTP_PATH"],
            status=status,
            outcome=_OUTCOMES.get(status) or _outcome(status),
            reason=fields.get("REASON"),
            version=fields["MODEL_VERSION"],
            client=fields["CLIENT"],
            milliseconds=number("DURATION_MS") or 0,
            handoff=number("HANDOFF_MS"),
            queue=number("QUEUE_MS"),
            prefill=number("PREFILL_MS"),
            decode=number("DECODE_MS"),
            first_token=number("TTFT_MS"),
            prompt_tokens=number("PROMPT_TOKENS"),
            completion_tokens=number("COMPLETION_TOKENS"),
        )

    def within(self, records: Iterable[Record]) -> dict[str, Any]:
        """Return it as a document, with the rollout among these records during which it ended."""
        at = datetime.fromisoformat(self.at)
        rollout = next((record.id for record in records if _covers(record, at)), None)
        return asdict(self) | {"rollout": rollout}

    @property
    def text(self) -> str:
        """Lines for an operator."""
        times = {
            "handoff": self.handoff,
            "queue": self.queue,
            "prefill": self.prefill,
            "decode": self.decode,
            "first token after": self.first_token,
        }
        lines = {
            "request": f"{self.id}: {self.method} {self.path} of {self.client}",
            "accepted by": self.accepted_by,
            "handed over": self._handed_over,
            "answered by": f"{self.answered_by}, version {self.version}",
            "outcome": f"{self.status}, {self.outcome}" + (f": {self.reason}" if self.reason else ""),
            "times": ", ".join(
                [f"{self.milliseconds} ms in all", *(f"{name} {ms} ms" for name, ms in times.items() if ms is not None)]
            ),
            "tokens": f"{self.prompt_tokens} of the prompt, {self.completion_tokens} of the answer"
            if self.prompt_tokens is not None
            else None,
            "ended at": self.at,
        }
        return "\n".join(f"{name:<12} {value}" for name, value in lines.items() if value)

    @property
    def _handed_over(self) -> str:
        if not self.handed_over_by:
            return "no, one worker had the connection all the time"
        if self.handed_over_by == UNKNOWN:
            return "yes, by the service manager's store or an earlier version of the server"
        times = "once" if self.handovers == 1 else f"{self.handovers} times, the last time"
        return f"{times} by {self.handed_over_by}"


def from_journal(lines: Iterable[str], request_id: str) -> Iterator[Trace]:
    """Yield the requests of an id among entries of `journalctl --output=json`."""
    for line in lines:
        fields = json.loads(line)
        if fields.get("REQUEST_ID") == word(request_id, _MAX_ID) and "HTTP_STATUS" in fields:
            worker = worker_name(fields.get("SLOT", UNKNOWN), fields.get("GENERATION", 0), fields.get("_PID", 0))
            yield Trace.of(fields, _at(fields), worker)


def from_text(lines: Iterable[str], request_id: str, workers: Mapping[int, str]) -> Iterator[Trace]:
    """Yield the requests of an id among the lines of a log that is text; `workers` by pid."""
    for line in lines:
        head = Head.parse(line)
        fields = access_line.parse(head.text) if head else None
        if head and fields and fields["REQUEST_ID"] == word(request_id, _MAX_ID):
            yield Trace.of(fields, head.at, workers.get(head.pid, f"{UNKNOWN}/0/{head.pid}"))


def first_time(line: str) -> datetime | None:
    """Return the time of a line of either kind; None if it has none."""
    if head := Head.parse(line):
        return head.at
    try:
        return _at(json.loads(line))
    except (ValueError, TypeError, KeyError):
        return None


def _at(fields: Mapping[str, str]) -> datetime:
    return datetime.fromtimestamp(int(fields["__REALTIME_TIMESTAMP"]) / _SECOND, UTC)


def _outcome(status: int) -> str:
    if status < 400:
        return "answered"
    return "refused" if status < 500 else "failed"


def _covers(record: Record, at: datetime) -> bool:
    end = record.ended_at
    return datetime.fromisoformat(record.started_at) <= at and (end is None or at <= datetime.fromisoformat(end))
