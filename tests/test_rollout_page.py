"""The rollout page in front of a fake glmctl."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from deploy.reports.timeline import stages
from tests.controller_fixtures import FakeController, record, slot, status, verdict
from tests.page_fixtures import TIMEOUT, free_address, wait_until
from tests.test_timeline import CASES
from ui.blocks import phase_list, slot_cards, table
from ui.figures import duration, zone
from ui.plots import plots, series
from ui.records import matching, phases_of, receipt_sentence, verdict_rows
from ui.rollout_texts import ROLLOUT_TEXTS
from ui.status import Point

UI = Path(__file__).parent.parent / "ui"
ENGLISH, CHINESE = ROLLOUT_TEXTS["en"], ROLLOUT_TEXTS["zh"]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def glmctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    glmctl = FakeController(tmp_path)
    monkeypatch.setenv("GLM_CONTROLLER", str(glmctl.path))
    monkeypatch.syspath_prepend(str(UI.parent))
    yield glmctl
    st.cache_resource.clear()
    st.cache_data.clear()


def open_page(name: str = "rollout_page.py") -> AppTest:
    return AppTest.from_file(UI / name, default_timeout=TIMEOUT).run()


def shown(page: AppTest) -> str:
    """All texts of the page, without the tags."""
    html = " ".join(element.proto.body for element in page.get("html"))
    parts = (*page.markdown, *page.caption, *page.info, *page.warning, *page.text, *page.code)
    return "\n".join([re.sub(r"<[^>]*>", " ", html), *(str(part.value) for part in parts)])


def await_text(page: AppTest, text: str) -> None:
    def found() -> bool:
        page.run()
        assert not page.exception
        return text in shown(page)

    wait_until(found)


def choose(page: AppTest, key: str, value: str) -> str:
    page.selectbox(key=key).set_value(value).run()
    assert not page.exception
    return shown(page)


def test_a_canary_from_beginning_to_end(glmctl: FakeController) -> None:
    """Slots, phases, the figures while they are collected, and the receipt at the end, on the same open page."""
    phases = [
        {"phase": "verify", "state": "done", "share": None, "at": "x", "seconds": 1.5, "planned": None},
        {"phase": "canary", "state": "running", "share": 50, "at": NOW.isoformat(), "seconds": None, "planned": 20},
        {"phase": "cutover", "state": "to come", "share": None, "at": None, "seconds": None, "planned": None},
    ]
    running = record(2, outcome=None, seconds=None, analysis=[], receipt=None)
    glmctl.publish(status(running, canary=50, phases=phases, verdict=verdict()))
    page = open_page()
    await_text(page, "deploy of 1.1.0")
    text = shown(page)
    for part in ("50 %", "20 s planned", "so far", "250 ms", "under way", "Listening on 127.0.0.1:8000"):
        assert part in text, part
    assert ENGLISH.receipt not in text
    [both] = [one.proto.body for one in page.get("html") if "<section" in one.proto.body]
    assert both.count("<section") == 2, "in one element, or the browser draws one share before the other"
    glmctl.set_history(record(1), record(2))
    glmctl.publish(status(record(2)))
    await_text(page, "all 344 requests are accounted for")
    assert ENGLISH.so_far not in shown(page)
    assert "not worse" in shown(page)


def test_history_is_filtered_and_shown_in_full(glmctl: FakeController) -> None:
    """By kind, version and outcome; the newest is first, and the address of the page names the one that is open."""
    records = [
        record(1, previous=None),
        record(2, outcome="rolled back", reason="50 %: p95 is worse"),
        record(3, version="1.2.0", kind="rollback"),
    ]
    glmctl.set_history(*records)
    glmctl.publish(status(records[-1]))
    page = open_page()
    await_text(page, records[0]["id"])
    assert page.selectbox(key="rollout").options[0].startswith(records[2]["id"])
    choose(page, "filter version", "1.1.0")
    assert [option.split()[0] for option in page.selectbox(key="rollout").options] == [
        records[1]["id"],
        records[0]["id"],
    ]
    for key, value, expected in (("kind", "rollback", [2]), ("version", "1.1.0", [1, 0]), ("outcome", "", [2, 1, 0])):
        assert matching(records, {key: value}) == [records[number] for number in expected]
    assert matching(records, {"version": "1.1.0", "outcome": "done"}) == [records[0]]
    assert records[1]["reason"] not in shown(page)
    assert records[1]["reason"] in choose(page, "rollout", records[1]["id"])
    assert page.query_params["rollout"] == records[1]["id"]
    again = AppTest.from_file(UI / "rollout_page.py", default_timeout=TIMEOUT)
    again.query_params["rollout"] = records[1]["id"]
    await_text(again, records[1]["reason"])


def test_an_unknown_status_is_said_in_words(glmctl: FakeController) -> None:
    """With glmctl's message, and the page is there again when it works."""
    glmctl.break_with("error: <b>systemd</b> is not running")
    page = open_page()
    await_text(page, ENGLISH.unknown)
    assert page.code[0].value == "error: <b>systemd</b> is not running"
    glmctl.publish(status())
    glmctl.mend()
    await_text(page, "Listening on")
    assert ENGLISH.no_rollout in shown(page)
    assert ENGLISH.unknown not in shown(page)


def test_pages_and_language(glmctl: FakeController, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chat is the first page; a language that is chosen there holds on the rollout page, and back."""
    monkeypatch.setenv("GLM_LISTEN", free_address())
    glmctl.set_history(record(1))
    glmctl.publish(status(record(1)))
    page = open_page("app.py")
    assert page.chat_input
    page.segmented_control[0].set_value("zh").run()
    page.switch_page("rollout_page.py").run()
    await_text(page, "1.1.0 的部署")
    for text in (CHINESE.recent, "金丝雀 50 %", "不差", "全部 344 个请求都有着落"):
        assert text in shown(page), text
    page.segmented_control[0].set_value("en").run()
    page.switch_page("page.py").run()
    assert page.segmented_control[0].value == "en"
    assert not page.exception


@pytest.mark.parametrize("name", [name for name, (one, _) in CASES.items() if one.outcome])
def test_phases_are_those_of_glmctl(name: str) -> None:
    """A record of the history has the phases that `glmctl status --json` prints for it."""
    one = CASES[name][0].model_copy(update={"ended_at": "2026-01-01T00:10:00.000+00:00"})
    assert phases_of(one.model_dump()) == [stage.document() for stage in stages(one)]


def cards(**slots: dict[str, Any]) -> str:
    return slot_cards({"live": "blue", "slots": slots}, ENGLISH)


def test_text_from_outside_is_escaped() -> None:
    """Nothing that a release or a unit is called becomes markup."""
    evil = "<script>alert(1)</script>"
    card = cards(blue=slot(evil, 50, state="starting", status_text=f"x: {evil}"))
    phases = [{"phase": evil, "state": "done", "share": None, "at": evil, "seconds": 1.0, "planned": None}]
    for html in (card, phase_list(phases, ENGLISH, UTC, NOW), table(evil, [evil], [[evil]])):
        assert evil not in html
        assert escape(evil) in html


def test_a_card_has_all_that_status_tells() -> None:
    """Version, state, share with what is mirrored, load, connections, memory and device."""
    card = cards(green=slot("1.1.0", 0, mirror=10, devices=[{"device": "cuda:0"}] * 2))
    text = " ".join(re.sub(r"<[^>]*>", " ", card).split())
    expected = "1.1.0 green #1 ready Share of requests 0 % and 10 % mirrored In flight 3 Requests/s 4.5"
    assert text.startswith(expected)
    assert "p95 250 ms" in text
    for fact in ("Errors 1.0%", "Gate open", "Connections 7", "Memory 300.0 MiB", "Device cuda:0"):
        assert fact in text
    assert ENGLISH.live not in text


def test_times_are_those_of_the_browser() -> None:
    """A phase began at the time of day where the viewer is; one that runs has its seconds until now."""
    running = {"phase": "bake", "state": "running", "share": None, "seconds": None, "planned": 60.0}
    html = phase_list([running | {"at": NOW.isoformat()}], ENGLISH, zone("Asia/Shanghai"), NOW + timedelta(seconds=15))
    assert "08:00:00" in html
    assert "15.0 s" in html
    assert "width: 25%" in html
    assert zone("Nowhere/At_All") is zone("../etc/passwd") is UTC
    assert [duration(seconds) for seconds in (None, 0.0042, 0.25, 2, 185, 7800)] == [
        "-", "4.2 ms", "250 ms", "2.0 s", "3 m 05 s", "2 h 10 m",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "all 344 requests"),
        ({"lost": 2, "unread": 1}, "2 of 345 requests failed"),
        ({"accepted": 2}, "No client sent a request"),
        ({"adds_up": False}, "do not add up"),
        ({"unadopted": 1, "adds_up": False}, "1 client connections were handed over and not received"),
    ],
)
def test_receipt_sentences(changed: dict[str, object], expected: str) -> None:
    """The sentence of a receipt tells the worst that its counts show."""
    assert expected in receipt_sentence(record(1)["receipt"] | changed, ENGLISH)


def test_figures_of_a_verdict() -> None:
    """Shares are in percent, times in their unit; a window without figures has its result."""
    worse = verdict()["metrics"][0] | {"name": "errors", "worse": True, "live": None, "p_value": None}
    assert verdict_rows(verdict(metrics=[worse, *verdict()["metrics"]]), ENGLISH) == [
        ["canary 50 %", "errors", "25.0%", "-", "40", "44", "-", "worse"],
        ["canary 50 %", "p95", "250 ms", "125 ms", "40", "44", "0.031", "not worse"],
    ]
    assert verdict_rows(verdict(window="bake", metrics=[], outcome="too few requests"), ENGLISH) == [
        ["bake", "", "", "", "", "", "", "too few requests"]
    ]


def test_plots_have_each_version_in_the_colour_of_its_slot() -> None:
    """The share is a band up to 100 %; errors are in percent, on an axis that a single one does not fill."""
    points = [
        Point(at, where, version, share, 4.0, 0.25, None, errors)
        for at, where, version, share, errors in (
            (0.0, "blue", "1.0.0", 100.0, None), (5.0, "blue", "1.2.0", 50.0, 0.0), (5.0, "green", "1.1.0", 50.0, 0.5),
        )
    ]  # fmt: skip
    data = series(points)
    assert data["series"] == ["1.0.0 (blue)", "1.2.0 (blue)", "1.1.0 (green)"]
    assert data["errors"] == [None, 0.0, 50.0]
    found = plots(points, ENGLISH)
    assert next(title for title, _ in found) == "Share of requests (%)"
    scales = [one["encoding"]["y"]["scale"] for _, one in found]
    assert scales[0] == {"domain": [0, 100]}
    assert scales[-1] == {"domain": [0, 50.0]}
    colours = found[0][1]["encoding"]["color"]["scale"]
    assert len(set(colours["range"])) == len(colours["domain"]) == 3
    newest = plots(points[1:], ENGLISH)[0][1]["encoding"]["color"]["scale"]
    colour_of = dict(zip(colours["domain"], colours["range"], strict=True))
    assert dict(zip(newest["domain"], newest["range"], strict=True)).items() <= colour_of.items()


def test_texts_are_complete() -> None:
    """What glmctl prints has a Chinese word, and the same figures are filled in in both languages."""
    words = set()
    for one, _ in CASES.values():
        words |= {one.kind, *filter(None, [one.outcome]), *(stage.phase for stage in stages(one))}
    assert {word for word in words if CHINESE.word(word) == word} == set()
    assert CHINESE.columns.keys() == ENGLISH.columns.keys()
    for name, text in vars(ENGLISH).items():
        if isinstance(text, str):
            assert sorted(re.findall(r"{\w+}", text)) == sorted(re.findall(r"{\w+}", getattr(CHINESE, name))), name
