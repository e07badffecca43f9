"""What a record of a rollout tells: its phases, how it was judged, and whether requests were lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ui.figures import duration, percent, seconds_between
from ui.rollout_texts import RolloutTexts
from ui.status import Document

__all__ = ["matching", "phases_of", "receipt_columns", "receipt_rows", "receipt_sentence", "verdict_rows"]

_SHARES = {"errors", "answer errors", "agreement"}  # metrics that are shares, not times


def matching(rollouts: Sequence[Document], wanted: Mapping[str, str]) -> list[Document]:
    """Return the rollouts whose fields have the wanted values, newest first; an empty value matches all."""
    return [one for one in reversed(rollouts) if all(one[name] == value for name, value in wanted.items() if value)]


def phases_of(record: Document) -> list[dict[str, Any]]:
    """Return the phases that a rollout has entered, as `phases` of `glmctl status --json` has them."""
    steps: Sequence[Document] = record["steps"]
    ends = [*(step["at"] for step in steps[1:]), record["ended_at"]]
    shares = iter(record["canary"])
    failed = _failed(record)
    return [
        {
            "phase": step["phase"],
            "state": "failed" if number == failed else "done" if end else "running",
            "share": next(shares, None) if step["phase"] == "canary" else None,
            "at": step["at"],
            "seconds": seconds_between(step["at"], end),
            "planned": {"canary": record["step"], "bake": record["bake"]}.get(step["phase"]),
        }
        for number, (step, end) in enumerate(zip(steps, ends, strict=False))
    ]


def verdict_rows(verdict: Document, texts: RolloutTexts) -> list[list[str]]:
    """Return a row for each metric: window, metric, candidate, live, requests of both, p-value, result."""
    outcome, window = texts.word(verdict["outcome"]), _window(verdict["window"], texts)
    rows = [
        [
            window,
            texts.word(metric["name"]),
            _value(metric, "candidate"),
            _value(metric, "live"),
            str(metric["candidate_requests"]),
            str(metric["live_requests"]),
            "-" if metric["p_value"] is None else f"{metric['p_value']:.2g}",
            texts.word("worse") if metric["worse"] else outcome,
        ]
        for metric in verdict["metrics"]
    ]
    return rows or [[window, *[""] * 6, outcome]]


def receipt_columns(texts: RolloutTexts) -> list[str]:
    """Return the titles of a receipt."""
    return ["", texts.version, *texts.columns.values()]


def receipt_rows(receipt: Document, texts: RolloutTexts) -> list[list[str]]:
    """Return a row for each generation, and one with the sums."""
    rows = [
        [f"{line['slot']} #{line['generation']}", line["version"], *(str(line[name]) for name in texts.columns)]
        for line in receipt["lines"]
    ]
    return [*rows, [texts.all, "", *(str(receipt[name]) for name in texts.columns)]]


def receipt_sentence(receipt: Document, texts: RolloutTexts) -> str:
    """Return whether requests were lost."""
    accepted, lost = receipt["accepted"], receipt["lost"]
    if receipt["unadopted"]:
        return texts.unadopted.format(unadopted=receipt["unadopted"])
    if not receipt["adds_up"]:
        return texts.not_adding_up
    if lost:
        return texts.lost.format(lost=lost, sent=accepted + receipt["unread"])
    if accepted == receipt["probes"]:
        return texts.nothing_asked.format(accepted=accepted)
    return texts.nothing_lost.format(accepted=accepted)


def _failed(record: Document) -> int | None:
    """Return the number of the phase that failed: the last one, or the one before a rollback."""
    phases = [step["phase"] for step in record["steps"]]
    if record["kind"] != "rollback" and phases[-1:] == ["rollback"]:
        return len(phases) - 2
    return None if record["outcome"] in {None, "done"} else len(phases) - 1


def _window(window: str, texts: RolloutTexts) -> str:
    return texts.word(window) if not window.endswith("%") else f"{texts.word('canary')} {window}"


def _value(metric: Document, side: str) -> str:
    value = metric[side]
    return percent(value) if metric["name"] in _SHARES else duration(value)
