"""`glmctl history`: past rollouts as text, and as JSON with documented fields."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.analysis.verdict import Metric, Verdict
from deploy.journal.receipt import Line, Receipt
from deploy.journal.record import HookRun, Record, Step
from deploy.reports import history
from deploy.reports.report import load_parts, summary
from deploy.rollout.judge import WARM_UP
from tests.box import CODE, live_host, wait_for

SUMS = {
    "accepted", "completed", "failed", "client_aborted", "in_flight", "drained", "cut", "handed_out", "adopted",
    "adds_up", "lost",
}  # fmt: skip
FIELDS = {
    "record": {
        "id", "kind", "strategy", "version", "slot", "previous", "previous_slot", "slot_held", "started_at", "ended_at",
        "seconds", "steps", "outcome", "reason", "switch_ms", "pause_ms", "canary", "step", "bake", "load", "analysis",
        "hooks", "receipt", "drain", "digests", "staged", "keep_warm", "limits", "by_operator", "strategy_reason",
        "operator",
    },
    "step": {"phase", "at"},
    "verdict": {"window", "at", "seconds", "metrics", "mirrored", "length_ratio", "outcome", "reason", "pinned"},
    "metric": {
        "name", "candidate", "live", "candidate_requests", "live_requests", "blocks", "blocks_worse", "p_value",
        "worse", "why", "one_client",
    },
    "hook": {"when", "command", "code", "seconds", "output"},
    "receipt": SUMS | {"probes", "killed", "unadopted", "unread", "lines"},
    "line": SUMS | {"slot", "generation", "version"},
}  # fmt: skip


@dataclass
class Printed:
    """One real deploy as `history` printed it."""

    record: dict[str, Any]
    listed: dict[str, Any]
    details: str
    listing: str


@pytest.fixture(scope="module")
def printed(checkpoints: dict[str, Path]) -> Iterator[Printed]:
    """A deploy with a canary step that is promoted, a bake, and a hook."""
    with live_host(checkpoints) as box:
        box.host.policy.parent.mkdir(parents=True, exist_ok=True)
        box.host.policy.write_text('[hooks]\npost_cutover = ["echo [all] is well"]\n[analysis]\nmin_requests = 10\n')
        deploy = box.begin("deploy", "1.1.0", "--canary", "50", "--step", "pause", "--bake", "1s")
        box.await_phase(deploy, "canary")
        time.sleep(WARM_UP["overlap"] + 0.5)  # times of earlier responses do not count
        with httpx.Client(base_url=f"http://{box.listen}", trust_env=False, timeout=60) as client:
            body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "stream": True}
            for _ in range(60):
                assert client.post("/v1/chat/completions", json=body).status_code == 200
            wait_for(lambda: box.json("status")["slots"]["green"]["p95"])
            box.glmctl("promote")
            out, _ = deploy.communicate(timeout=60)
            assert deploy.returncode == 0, out
        listed = box.json("history")
        record = box.json("history", listed["rollouts"][-1]["id"])
        yield Printed(record, listed, box.glmctl("history", record["id"]).stdout, box.glmctl("history").stdout)


def test_fields_are_documented(printed: Printed) -> None:
    """JSON has exactly the fields that CONTRIBUTING.md names, at any depth."""
    record = printed.record
    found = {
        "record": [record],
        "step": record["steps"],
        "verdict": record["analysis"],
        "metric": [metric for one in record["analysis"] for metric in one["metrics"]],
        "hook": record["hooks"],
        "receipt": [record["receipt"]],
        "line": record["receipt"]["lines"],
    }
    for name, ones in found.items():
        assert ones, name
        assert {frozenset(one) for one in ones} == {frozenset(FIELDS[name])}, name
    assert record == printed.listed["rollouts"][-1]
    contract = (CODE / "CONTRIBUTING.md").read_text()
    contract = contract[contract.index("**`$STATE/history/<id>.json`**") : contract.index("**`$STATE/lock`**")]
    missing = {field for fields in FIELDS.values() for field in fields if f"`{field}`" not in contract}
    assert missing == set()


def test_details(printed: Printed) -> None:
    """One rollout has summary, phases, analysis, hooks, receipt and effect, in at most 110 columns."""
    text, record = printed.details, printed.record
    assert max(map(len, text.splitlines())) <= 110
    assert text.startswith(f"{record['id']}  1.1.0 is live in green (before: 1.0.0): deploy done in")
    for name in ("preflight", "prepare", "start", "verify", "canary 50 %", "cutover", "bake", "retire"):
        loaded = load_parts(record["load"]) if name == "start" else ""  # nothing is left of a load below 10 ms
        parts = f" +{re.escape(loaded)}" if loaded else ""
        assert re.search(rf"^{name} +\d\d:\d\d:\d\d +\d+\.\d\d{parts}$", text, re.MULTILINE), name
    errors = next(one for one in record["analysis"][0]["metrics"] if one["name"] == "errors")
    requests = f"{errors['candidate_requests']} +{errors['live_requests']}"
    assert re.search(rf"^50 % +errors +0\.0% +0\.0% +{requests} +- +not worse$", text, re.MULTILINE)
    assert re.search(r"^ +p95 +[\d.]+ m?s +[\d.]+ m?s +\d+ +\d+ ", text, re.MULTILINE)
    assert re.search(r"^post_cutover +echo \[all\] is well +0 +\d\.\d\d +\[all\] is well$", text, re.MULTILINE)
    flat = re.sub(r"\s+", " ", text)
    assert re.search(r"accepted completed failed aborted flight over adopted drained cut", flat)
    for line in record["receipt"]["lines"]:
        columns = ("accepted", "completed", "failed", "client_aborted", "in_flight", "handed_out", "adopted", "drained")
        counts = " ".join(str(line[name]) for name in (*columns, "cut"))
        assert f"{line['slot']} #{line['generation']} {line['version']} {counts}" in flat
    assert re.search(r"1\.1\.0 took over from 1\.0\.0 in green: \d+ client connection handoffs?, ", flat)
    assert "no request was cut" in flat
    assert re.search(r"the longest wait of a client was [\d.]+ m?s\.", flat)


def test_listing(printed: Printed) -> None:
    """Rollouts are listed newest last, one line each, in at most 110 columns."""
    head, *lines = printed.listing.splitlines()
    assert head.split() == ["rollout", "kind", "version", "before", "outcome", "duration", "longest", "wait", "lost"]
    assert [line.split()[0] for line in lines] == [one["id"] for one in printed.listed["rollouts"]]
    assert re.search(r"deploy +1\.1\.0 +1\.0\.0 +done +[\d.]+ m?s +[\d.]+ m?s +0$", lines[-1])
    assert max(map(len, printed.listing.splitlines())) <= 110


def rollout(**more: Any) -> Record:
    """A deploy of 1.1.0 over 1.0.0."""
    plain: dict[str, Any] = {
        "id": "20260101-000000-01", "kind": "deploy", "version": "1.1.0", "slot": "green", "previous": "1.0.0",
        "previous_slot": "blue", "started_at": "2026-01-01T00:00:00.000+00:00",
        "ended_at": "2026-01-01T00:01:00.000+00:00", "seconds": 60.0, "outcome": "done",
        "steps": [Step(phase=name, at=f"2026-01-01T00:00:{at:02}.000+00:00") for at, name in
                  enumerate(("preflight", "prepare", "start", "verify", "cutover", "bake", "retire"))],
    }  # fmt: skip
    return Record(**plain | more)


def account(**more: int) -> Receipt:
    """The counts of blue and green."""
    lines = [
        Line(slot="blue", generation=1, version="1.0.0", accepted=9, completed=9, handed_out=7, drained=3),
        Line(slot="green", generation=1, version="1.1.0", accepted=5, completed=5, adopted=7, drained=1),
    ]
    return Receipt(lines=lines, accepted=14, completed=14, handed_out=7, adopted=7, drained=4, **more)


def notes(record: Record) -> dict[str, str]:
    """What is told of each phase beside its times."""
    rows = (
        re.match(r"(\w+) +\d\d:\d\d:\d\d +[\d.]+(?: +(.*))?$", line) for line in history.details(record).splitlines()
    )
    return {row[1]: row[2] or "" for row in rows if row}


def test_what_took_the_time_is_told_beside_its_phase() -> None:
    """The parts of a load, of a reload too; the digests; where new weights were staged."""
    load = {"imports": 2.0, "reading": 3.0, "building": 0.001}
    assert notes(rollout(load=load, digests=18.0)) == {
        "preflight": "digests compared in 18.0 s, beside the load", "prepare": "",
        "start": "imports 2.0 s, reading 3.0 s",
        "verify": "", "cutover": "", "bake": "", "retire": "",
    }  # fmt: skip
    assert notes(rollout(kind="reload", steps=RELOAD, load=load)) == {"reload": "imports 2.0 s, reading 3.0 s"}
    assert notes(rollout(strategy="swap", digests=18.0))["preflight"] == "digests compared in 18.0 s"
    swapped = rollout(strategy="weights", staged="device memory", pause_ms=14.0)
    assert notes(swapped)["prepare"] == "the new weights were staged in device memory"
    assert "the longest wait was 14 ms; the new weights came from device memory." in summary(swapped)


RELOAD = [Step(phase="reload", at="2026-01-01T00:00:00.000+00:00")]
EFFECTS: dict[str, tuple[Record, str]] = {
    "done": (
        rollout(receipt=account(), pause_ms=14.0),
        "1.1.0 took over from 1.0.0 in green: 7 client connection handoffs, no request was cut, the old version "
        "completed 3 requests while draining, the longest wait of a client was 14 ms.",
    ),
    "cut": (rollout(receipt=account(cut=1)), "the drain deadline cut 1 request,"),
    "the first": (
        rollout(previous=None, previous_slot=None, receipt=Receipt()),
        "1.1.0 went live in green; nothing was live before.",
    ),
    "rolled back in canary": (
        rollout(outcome="rolled back", reason="it failed", steps=rollout().steps[:4], receipt=account()),
        "1.1.0 never went live and completed 5 requests; 1.0.0 serves as before.",
    ),
    "rolled back in bake": (
        rollout(outcome="rolled back", reason="slow", receipt=account()),
        "1.1.0 was live for 56.0 s and completed 5 requests; 1.0.0 serves as before.",
    ),
    "not ready": (
        rollout(outcome="not ready", steps=rollout().steps[:3], receipt=Receipt()),
        "1.1.0 never went live and completed 0 requests; 1.0.0 serves as before.",
    ),
    "reload": (
        rollout(
            kind="reload",
            slot="blue",
            version="1.0.0",
            steps=RELOAD,
            receipt=Receipt(
                lines=[Line(slot="blue", generation=number, version="1.0.0", drained=1) for number in (1, 2)]
            ),
        ),
        "A new generation of 1.0.0 took over in blue: no request was cut, the old generation completed 1 request while "
        "draining.",
    ),
    "failed reload": (
        rollout(kind="reload", outcome="not ready", slot="blue", version="1.0.0", steps=RELOAD, receipt=Receipt()),
        "The new generation of 1.0.0 did not take over; 1.0.0 serves as before.",
    ),
}


@pytest.mark.parametrize(("record", "sentence"), EFFECTS.values(), ids=EFFECTS.keys())
def test_effect_on_clients(record: Record, sentence: str) -> None:
    """The last sentence states the effect on clients, for each outcome."""
    assert sentence in re.sub(r"\s+", " ", history.details(record))


def test_foreign_text_is_printed_verbatim() -> None:
    """Brackets in a reason, a command or its output are no markup, and no line is longer than 110 columns."""
    errors = Metric(name="errors", candidate=0.5, live=0.0, candidate_requests=9, p_value=0.001, worse=True)
    record = rollout(
        outcome="rolled back",
        reason="[/nonsense] " * 30,
        hooks=[HookRun(when="on_rollback", command="say [/x] " * 20, code=None, seconds=30.0, output="[/y]\nmore")],
        analysis=[
            Verdict(window="bake", outcome="worse", reason="[/z] failed", metrics=[errors]),
        ],
    )
    text = history.details(record)
    assert max(map(len, text.splitlines())) <= 110
    assert "[/nonsense] [/nonsense]" in text
    assert re.search(r"on_rollback +say \[/x\] .* killed +30\.00 +\[/y\]$", text, re.MULTILINE)
    assert re.search(r"bake +errors +50\.0% +0\.0% +9 +0 +0\.001 +worse$", text, re.MULTILINE)
    assert "bake: worse, [/z] failed" in text
    assert json.loads(record.model_dump_json())["hooks"][0]["output"] == "[/y]\nmore"


def test_records_of_earlier_versions_can_be_read() -> None:
    """A hook's output was called `said` in earlier records."""
    hook = {"when": "on_rollback", "command": "true", "code": 0, "seconds": 0.1, "said": "done"}
    assert HookRun.model_validate(hook).output == "done"
