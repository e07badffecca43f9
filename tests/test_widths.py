"""At 80 columns no line of a report is cut off or wrapped within a word, whatever was recorded."""

from __future__ import annotations

import ast
import io
import itertools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from deploy.analysis.verdict import Metric, Verdict
from deploy.commands.status import _table
from deploy.display import Display, count
from deploy.journal.receipt import Line, Receipt
from deploy.journal.record import HookRun, Record, Step
from deploy.reports import history, report
from deploy.reports.tables import natural_width, receipt_table
from tests.box import CODE

WIDTH = 80
FEW = settings(deadline=None, max_examples=8)
COUNTS = ("accepted", "completed", "failed", "client_aborted", "in_flight", "handed_out", "adopted", "drained", "cut")
versions = st.sampled_from(["1.0.0", "1.10.12", "1.10.0-20260412", "12.11.10-20260412"])
numbers = st.sampled_from([0, 1, 4396, 99_999_999])
lines = st.builds(
    Line,
    slot=st.sampled_from(["blue", "green"]),
    generation=st.integers(1, 120),
    version=versions,
    **dict.fromkeys(COUNTS, numbers),
)


def sums(of: list[Line]) -> Receipt:
    """The receipt of these lines."""
    return Receipt(lines=of, **{name: sum(getattr(line, name) for line in of) for name in COUNTS})


receipts = st.lists(lines, min_size=1, max_size=4).map(sums)


def drawn(receipt: Receipt, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(receipt_table(receipt, width))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def record(receipt: Receipt | None = None, **more: Any) -> Record:
    """A rollout with everything that a record may have."""
    metrics = [
        Metric(name=name, candidate=0.5, live=0.25, candidate_requests=123456, live_requests=1234567, p_value=0.0123)
        for name in ("errors", "mirrored ttft p95")
    ]
    plain: dict[str, Any] = {
        "id": "20260101-000000-01", "kind": "rollback", "version": "1.10.0-20260412", "slot": "green",
        "previous": "1.0.0-20260405", "previous_slot": "blue", "started_at": "2026-01-01T00:00:00.000+00:00",
        "ended_at": "2026-01-01T00:01:00.000+00:00", "seconds": 60.0, "outcome": "rolled back", "pause_ms": 1412.0,
        "reason": "of its requests 5 of 100 failed, of those of the live slot 0 of 1000, which chance does not explain",
        "steps": [Step(phase=name, at=f"2026-01-01T00:00:{at:02}.000+00:00") for at, name in
                  enumerate(("preflight", "prepare", "start", "verify", "cutover", "bake", "rollback"))],
        "load": {"imports": 2.0, "reading": 31.2, "building": 0.5, "warming up": 4.0, "checking": 1.5},
        "analysis": [Verdict(window="canary 12.5 %", outcome="too few requests", reason="x " * 60, metrics=metrics)],
        "hooks": [HookRun(when="post_cutover", command="tell " * 20, code=None, seconds=30.0, output="told " * 20)],
        "receipt": receipt,
    }  # fmt: skip
    return Record(**plain | more)


@FEW
@given(receipts, st.sampled_from([80, 94, 110]))
def test_a_receipt_fits_and_has_every_count(receipt: Receipt, width: int) -> None:
    """Each count of each generation, and each sum, is there as a number of its own."""
    text = drawn(receipt, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    found = re.findall(r"(?<![\w.#-])\d+(?![\w.-])", text)
    for one in (*receipt.lines, receipt):
        for name in COUNTS:
            assert str(getattr(one, name)) in found
    for line in receipt.lines:
        assert f"{line.slot} #{line.generation}" in text


def test_a_receipt_has_a_row_for_each_generation_where_rows_fit() -> None:
    """And a column for each at 80 columns: the same numbers, read downwards."""
    both = [
        Line(slot="blue", generation=1, version="1.0.0", accepted=2548, completed=2548, handed_out=21),
        Line(slot="green", generation=1, version="1.1.0", accepted=1852, completed=1848, in_flight=4, adopted=21),
    ]
    rows = [line.split() for line in drawn(sums(both), 110).splitlines()]
    assert ["blue", "#1", "1.0.0", "2548", "2548", "0", "0", "0", "21", "0", "0", "0"] in rows
    columns = [line.split() for line in drawn(sums(both), 80).splitlines()]
    assert ["blue", "#1", "green", "#1"] in columns
    assert ["accepted", "2548", "1852", "4400"] in columns
    assert ["handed", "over", "21", "0", "21"] in columns


@FEW
@given(receipts)
def test_the_end_of_a_rollout_fits(receipt: Receipt) -> None:
    """Summary, receipt and sentence of `deploy`, and the whole of `history ID`; words stay whole."""
    one = record(receipt)
    for text in (report.text(one, WIDTH), history.details(one, WIDTH)):
        assert max(map(len, text.splitlines())) <= WIDTH
        words = set(text.split())
        assert set((one.reason or "").split()) - words <= {"explain"}  # the last one has a full stop behind it
    details = history.details(one, WIDTH)
    assert re.search(r"^canary 12.5 % +errors +50\.0% +25\.0%( .*)? too few requests$", details, re.MULTILINE)
    assert re.search(r"^post_cutover +tell .*killed +30\.00 +told ", details, re.MULTILINE)


@FEW
@given(
    st.lists(
        st.tuples(versions, versions, st.sampled_from(["done", "rolled back", "interrupted", None])),
        min_size=1,
        max_size=3,
    )
)
def test_a_list_of_rollouts_fits(found: list[tuple[str, str, Any]]) -> None:
    """A narrow terminal has fewer columns, never cut ones; id, version, outcome and loss are always there."""
    records = [record(version=new, previous=old, outcome=outcome) for new, old, outcome in found]
    text = history.listing(records, WIDTH)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "…" not in text
    head, *rows = text.splitlines()
    assert {"rollout", "kind", "version", "outcome", "lost"} <= set(head.split())
    assert [row.split()[0] for row in rows] == [one.id for one in records]
    for row, one in zip(rows, records, strict=True):
        assert one.version in row.split()


def test_a_wide_list_has_all_columns() -> None:
    """Nothing is left out that fits."""
    head = history.listing([record()], 140).splitlines()[0]
    assert head.split() == ["rollout", "kind", "version", "before", "outcome", "duration", "longest", "wait", "lost"]


@FEW
@given(
    versions, versions, st.sampled_from(["ready", "starting", "stopping"]), numbers, st.floats(0, 100), st.booleans()
)
def test_status_fits(blue: str, green: str, state: str, number: int, share: float, mirrored: bool) -> None:
    """On a terminal that cannot draw, `status` is a table."""
    slot = {
        "state": state, "gate": "closed", "share": round(share, 1), "mirror": 12.5 if mirrored else 0.0,
        "generation": 12, "in_flight": number % 1000, "connections": number % 10_000, "workers": 8,
        "memory": number << 10, "p95": 12.25, "load": {}, "devices": [], "status_text": None,
    }  # fmt: skip
    slots = {"blue": {**slot, "version": blue}, "green": {**slot, "version": green}}
    document: dict[str, Any] = {
        "live": "blue",
        "listen": "127.0.0.1:8000",
        "summary": None,
        "slots": slots,
        "devices": [],
    }
    assert natural_width(_table(document, WIDTH)) <= WIDTH


class Terminal(io.StringIO):
    """What a terminal is told."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "pipe"])
def test_phases_are_wrapped_beside_their_name(is_terminal: bool) -> None:
    """On a terminal at words and indented; elsewhere a phase is one line, for programs that read lines."""
    display, out = Display(), Terminal() if is_terminal else io.StringIO()
    display.console = Console(file=out, width=WIDTH, force_terminal=is_terminal, color_system=None, highlight=False)
    text = "overlap: 1.1.0 fits beside blue: it needs 20.6 GiB at least, and of 79.6 GiB on cuda:0 there are 58.2 free"
    display.phase("strategy", text)
    shown = [line.rstrip() for line in out.getvalue().splitlines()]
    assert " ".join(" ".join(shown).split()) == f"0.0 s strategy {text}"
    assert len(shown) == (2 if is_terminal else 1)
    assert all(len(line) <= WIDTH for line in shown) is is_terminal
    assert all(line.startswith(" " * 21) for line in shown[1:])


@given(numbers, st.sampled_from(["request", "worker", "client connection handoff"]))
def test_plurals(number: int, noun: str) -> None:
    """One is one; none and all others are many."""
    assert count(number, noun) == (f"1 {noun}" if number == 1 else f"{number} {noun}s")


@FEW
@given(accepted=st.integers(0, 3), failed=st.integers(0, 3), probes=st.integers(0, 3), handed=st.integers(0, 3),
       unread=st.integers(0, 2))  # fmt: skip
def test_sentences_of_receipts_have_their_plurals(
    accepted: int, failed: int, probes: int, handed: int, unread: int
) -> None:
    """No sentence says `1 requests`, `all 1` or `1 … were`."""
    receipt = Receipt(accepted=accepted + failed, completed=accepted, failed=failed, probes=probes, handed_out=handed,
                      unread=unread, lines=[])  # fmt: skip
    sentence = report.receipt_sentence(receipt)
    assert not re.search(r"\b1 (client )?(\w+s|\w+ were)\b", sentence.replace("1 of", "")), sentence
    assert "all 1 " not in sentence
    assert not re.search(r"\b([02-9]) (request|connection)\b", sentence), sentence


NOUNS = "requests connections workers answers bytes files releases rollouts checks slots responses versions GPUs lines"
CHECKED = {("doctor.py", "answered"), ("report.py", "accepted")}  # a slot "answers"; more than one


def test_numbers_in_messages_have_their_plurals_from_count() -> None:
    """No message of the controller puts a number in front of a plural itself; `count` knows that one is one."""
    pattern = re.compile(rf" ({NOUNS.replace(' ', '|')})\b(?!/)")
    found = set()
    for path in (CODE / "deploy").rglob("*.py"):
        if "loadtest" in path.parts:  # stands alone
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for number, text in itertools.pairwise(parts):
                if (
                    isinstance(number, ast.FormattedValue)
                    and isinstance(text, ast.Constant)
                    and pattern.match(str(text.value))
                ):
                    found.add((path.name, ast.unparse(number.value)))
    assert found == CHECKED
