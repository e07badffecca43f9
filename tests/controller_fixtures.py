"""A fake glmctl for the rollout page, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCRIPT = """\
#!/bin/sh
cd "$(dirname "$0")" && echo "$1" >> calls
test ! -e broken || { cat broken >&2; exit 3; }
case "$1" in
status) exec tail -n +1 -f status ;;
history) exec cat history ;;
release) exec cat releases ;;
esac
"""


class FakeController:
    """A glmctl whose documents the test writes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "glmctl"
        self.path.write_text(SCRIPT)
        self.path.chmod(0o755)
        (directory / "status").touch()
        (directory / "releases").write_text(json.dumps({"releases": [{"version": "1.0.0"}, {"version": "1.1.0"}]}))
        self.set_history()

    @property
    def calls(self) -> list[str]:
        """The verbs with which it was started."""
        path = self._directory / "calls"
        return path.read_text().split() if path.exists() else []

    def publish(self, document: dict[str, Any]) -> None:
        with (self._directory / "status").open("a") as file:
            file.write(f"{json.dumps(document)}\n")

    def set_history(self, *records: dict[str, Any]) -> None:
        (self._directory / "history").write_text(json.dumps({"rollouts": records}))

    def break_with(self, message: str) -> None:
        (self._directory / "broken").write_text(message)

    def mend(self) -> None:
        (self._directory / "broken").unlink()


def slot(version: str | None, share: float, **more: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "version": version, "state": "ready" if version else "empty", "gate": "open" if version else "closed",
        "generation": 1 if version else None, "share": share, "mirror": 0.0, "in_flight": 3, "connections": 7,
        "workers": 1, "devices": [{"device": "cpu"}], "memory": 300 << 20, "requests_per_s": 4.5, "p95": 0.25,
        "ttft_p95": 0.125, "errors": 0.01, "load": {}, "status_text": None,
    }  # fmt: skip
    return plain | more


def record(number: int, **more: Any) -> dict[str, Any]:
    """A deploy of 1.1.0 over 1.0.0 that is done."""
    day = f"2026-01-{number:02}"
    sums = dict.fromkeys(["failed", "client_aborted", "in_flight", "handed_out", "adopted", "drained", "cut"], 0)
    counts = {"accepted": 344, "completed": 344, **sums}
    receipt = {"lost": 0, "unadopted": 0, "unread": 0, "probes": 2, "adds_up": True, **counts}
    plain: dict[str, Any] = {
        "id": f"202601{number:02}-000000-01", "kind": "deploy", "strategy": "overlap", "version": "1.1.0",
        "previous": "1.0.0", "started_at": f"{day}T00:00:00.000+00:00", "ended_at": f"{day}T00:01:00.000+00:00",
        "seconds": 60.0, "outcome": "done", "reason": None, "pause_ms": 23.0, "canary": [50.0], "step": 20.0,
        "bake": None, "analysis": [verdict()],
        "steps": [{"phase": name, "at": f"{day}T00:00:{10 * at:02}.000+00:00"}
                  for at, name in enumerate(["preflight", "prepare", "start", "verify", "canary", "cutover"])],
        "receipt": {**receipt, "lines": [{"slot": "green", "generation": 1, "version": "1.1.0", **counts}]},
    }  # fmt: skip
    return plain | more


def verdict(**more: Any) -> dict[str, Any]:
    metric = {
        "name": "p95", "candidate": 0.25, "live": 0.125, "candidate_requests": 40, "live_requests": 44,
        "p_value": 0.031, "worse": False,
    }  # fmt: skip
    return {"window": "50 %", "metrics": [metric], "outcome": "not worse", "reason": None} | more


def status(rollout: dict[str, Any] | None = None, *, canary: float = 0.0, **more: Any) -> dict[str, Any]:
    """Blue serves 1.0.0, and green 1.1.0 with a share of `canary` percent."""
    shown = {name: value for name, value in (rollout or {}).items() if name != "receipt"} | {"interrupted": False}
    plain: dict[str, Any] = {
        "live": "blue", "listen": "127.0.0.1:8000", "devices": [], "verdict": None, "phases": [], "summary": None,
        "slots": {"blue": slot("1.0.0", 100 - canary), "green": slot("1.1.0", canary)},
        "rollout": shown if rollout else None,
    }  # fmt: skip
    return plain | more
