"""The line of the access log as text, as an operator reads it back where there is no journal."""

from __future__ import annotations

import re

__all__ = ["parse"]

_FIELDS = {
    "method": "HTTP_METHOD", "path": "HTTP_PATH", "status": "HTTP_STATUS", "ms": "DURATION_MS", "first": "TTFT_MS",
    "prompt": "PROMPT_TOKENS", "completion": "COMPLETION_TOKENS", "queue": "QUEUE_MS", "prefill": "PREFILL_MS",
    "decode": "DECODE_MS", "handoff": "HANDOFF_MS", "accepted": "ACCEPTED_BY", "by": "HANDED_OVER_BY",
    "handovers": "HANDOVERS", "version": "MODEL_VERSION", "client": "CLIENT", "id": "REQUEST_ID", "reason": "REASON",
}  # fmt: skip
"""The field of the journal that has each part."""
_LINE = re.compile(
    r"(?P<method>\S*) (?P<path>\S*) (?P<status>\d{3}) (?P<ms>\d+) ms"
    r"(?:, first token (?P<first>\d+) ms)?(?:, tokens (?P<prompt>\d+)\+(?P<completion>\d+))?"
    r"(?:, handoff (?P<handoff>\d+) ms)?"
    r"(?:, queue (?P<queue>\d+) ms, prefill (?P<prefill>\d+) ms, decode (?P<decode>\d+) ms)?"
    r"(?:, accepted by (?P<accepted>\S+), handed over by (?P<by>\S+), handovers (?P<handovers>\d+))?"
    r", version (?P<version>\S*), client (?P<client>\S+), id (?P<id>\S*?)(?:: (?P<reason>.+))?",
    re.ASCII,
)


def parse(text: str) -> dict[str, str] | None:
    r"""Return the fields of a line, named as in the journal; None if it is no line of the access log.

    Spaces in values, except in the reason, are `\x20`.
    """
    match = _LINE.fullmatch(text)
    return match and {_FIELDS[name]: value for name, value in match.groupdict().items() if value is not None}
