"""The compare page in front of a fake service: two slots, one slot, differences and votes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
import streamlit as st
from hypothesis import given, settings, strategies
from streamlit.testing.v1 import AppTest

from tests.page_fixtures import PAGE, FakeService, open_page, picture, wait_until
from ui.client import Fault
from ui.compare.differences import MAX_WORDS, WORD, mark_differences
from ui.compare.texts import COMPARE_TEXTS
from ui.compare.votes import Tally, VoteStore, open_votes
from ui.texts import LANGUAGES

WORDS = COMPARE_TEXTS["en"]


@pytest.fixture
def service() -> Iterator[FakeService]:
    service = FakeService()
    service.candidate = "1.1.0", "green"
    service.answer, service.candidate_answer = ["a red ", "thing"], ["a red ", "circle"]
    yield service
    service.close()


@pytest.fixture
def page(service: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[AppTest]:
    monkeypatch.setenv("GLM_STATE", str(tmp_path))
    with open_page(service, monkeypatch, PAGE.with_name("compare_page.py")) as page:
        yield page


def shown(page: AppTest) -> str:
    html = [element.proto.body for element in page.get("html")]
    parts = (*page.markdown, *page.caption, *page.info, *page.warning, *page.text)
    return "\n".join([*html, *(str(part.value) for part in parts)])


def compare(page: AppTest, text: str) -> None:
    """Send a question and wait for both answers."""
    page.chat_input[0].set_value(text).run()
    wait_until(lambda: page.session_state["comparison"].complete)
    page.run()
    assert not page.exception


def vote(page: AppTest, choice: str) -> None:
    next(one for one in page.segmented_control if one.label == WORDS.vote).set_value(choice).run()
    assert not page.exception


def test_both_answer_the_same_question(page: AppTest, service: FakeService) -> None:
    """The same request goes to each side with its pin; both answers have their version, slot and times."""
    service.tokens = 4
    page.chat_input[0].upload("0.png", picture(), "image/png")
    compare(page, "what is it?")
    first, second = service.requests
    assert first == second
    assert [part["type"] for part in first["messages"][0]["content"]] == ["image_url", "text"]
    text = shown(page)
    assert "#### 1.0.0 :blue-badge[blue · live]" in text
    assert "#### 1.1.0 :green-badge[green · candidate]" in text
    assert '<div class="glm-answer">a red <mark>thing</mark></div>' in text
    assert '<div class="glm-answer">a red <mark>circle</mark></div>' in text
    times = [caption.value for caption in page.caption if "s in all" in caption.value]
    assert len(times) == 2
    assert all("first token after" in line for line in times)
    page.toggle[0].set_value(False).run()
    assert "<mark>" not in shown(page)


def test_both_stream_at_once(page: AppTest, service: FakeService) -> None:
    """Neither side waits for the other, no second question is taken meanwhile, and both can be stopped."""
    service.allow(1)
    page.chat_input[0].set_value("slowly").run()
    replies = page.session_state["comparison"].replies
    wait_until(lambda: all(reply.text == "a red " for reply in replies))
    page.run()
    assert shown(page).count("a red  ▍") == 2
    assert page.chat_input[0].disabled
    next(button for button in page.button if button.label == WORDS.stop).click().run()
    assert [reply.stopped for reply in replies] == [True, True]
    assert not page.segmented_control[1:], "what was stopped is not voted on"


def test_one_slot_is_refused_in_words(page: AppTest, service: FakeService) -> None:
    """Without a canary nothing can be sent, and the page says why, in both languages; with one it can."""
    service.candidate = None
    page.run()
    assert "Only **1.0.0** in slot blue answers" in page.info[0].value
    assert page.chat_input[0].disabled
    page.segmented_control[0].set_value("zh").run()
    assert "只有 blue 槽位的 **1.0.0**" in page.info[0].value
    service.candidate = "1.1.0", "green"
    page.run()
    assert not page.info
    assert not page.chat_input[0].disabled


def test_a_slot_that_is_kept_warm(
    page: AppTest, service: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a canary it is asked on its internal socket, if the live slot accepts the page's key."""
    service.candidate = None
    monkeypatch.setenv("GLM_RUNTIME", str(tmp_path))
    st.cache_resource.clear()
    (tmp_path / "green").mkdir()
    warm = FakeService(tmp_path / "green/http.sock")
    warm.version, warm.slot, warm.answer = "0.9.0", "green", ["a red ", "blob"]
    service.models_error = 401, {"error": {"message": "no key"}}
    try:
        page.run()
        assert LANGUAGES["en"].faults[Fault.UNAUTHORIZED][0] in page.warning[0].value
        assert page.chat_input[0].disabled
        service.models_error = None
        page.run()
        compare(page, "what is it?")
        assert "#### 0.9.0 :green-badge[green · not live]" in shown(page)
        assert service.requests == warm.requests
        vote(page, "first")
        assert "<td>0.9.0 / 1.0.0</td><td>0</td><td>1</td><td>0</td><td>0</td>" in shown(page)
    finally:
        warm.close()
    (tmp_path / "green/http.sock").unlink()
    st.cache_resource.clear()  # a slot that stops closes its connections
    page.run()
    assert "Only **1.0.0** in slot blue answers" in page.info[0].value


def test_a_canary_that_ends_meanwhile(page: AppTest, service: FakeService) -> None:
    """Two answers of one slot are shown as such, and not voted on."""
    service.allow(1)
    page.chat_input[0].set_value("slowly").run()
    wait_until(lambda: len(service.requests) == 2)
    comparison = page.session_state["comparison"]
    wait_until(lambda: all(reply.text for reply in comparison.replies))
    comparison.replies[1].live = comparison.replies[0].live
    service.allow()
    wait_until(lambda: comparison.complete)
    comparison.replies[1].live = comparison.replies[0].live
    page.run()
    assert WORDS.same_slot.format(slot="blue") in page.info[0].value
    assert comparison.versions is None


def test_a_refused_picture_holds_the_question_back(page: AppTest, service: FakeService) -> None:
    """Pictures are checked as in the chat."""
    page.chat_input[0].upload("a.png", b"%PDF-1.7", "image/png")
    page.chat_input[0].set_value("what is it?").run()
    assert service.requests == []
    assert "a.png is a PDF" in page.warning[0].value
    assert page.chat_input[0].proto.value == "what is it?"


def test_a_failure_stays_on_its_side(page: AppTest, service: FakeService) -> None:
    """An error is shown, and there is no vote."""
    service.error = 429, {"error": {"message": "full", "code": "queue_full"}}
    compare(page, "hello")
    assert len(page.warning) == 2
    assert LANGUAGES["en"].faults[page.session_state["comparison"].replies[0].error.fault][0] in page.warning[0].value
    assert len(page.segmented_control) == 1


def test_a_vote_is_kept_and_can_be_changed(page: AppTest, tmp_path: Path) -> None:
    """One vote for each comparison; the sums survive a restart of the page."""
    compare(page, "hello")
    vote(page, "second")
    vote(page, "first")
    assert WORDS.voted in shown(page)
    assert "<td>1.0.0 / 1.1.0</td><td>1</td><td>0</td><td>0</td><td>0</td>" in shown(page)
    compare(page, "again")
    vote(page, "neither")
    again = open_votes()
    assert again.tallies() == [Tally("1.0.0", "1.1.0", 1, 0, 0, 1)]
    again.close()
    assert (tmp_path / "ui").stat().st_mode & 0o077 == 0
    stored = (tmp_path / "ui" / "votes.sqlite").read_bytes()
    assert b"hello" not in stored


def test_a_full_disk_does_not_end_the_page(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vote that cannot be kept says so."""

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    compare(page, "hello")
    monkeypatch.setattr(VoteStore, "vote", fail)
    vote(page, "first")
    assert page.error[0].value == WORDS.vote_failed
    assert page.session_state["comparison"].choice is None


VERSIONS = strategies.sampled_from([("1", "2"), ("2", "1"), ("1", "3")])
VOTES = strategies.tuples(
    strategies.sampled_from("ab"),
    strategies.integers(0, 5),
    VERSIONS,
    strategies.sampled_from(["first", "second", "equal", "neither"]),
)


@settings(max_examples=30, deadline=None)
@given(strategies.lists(VOTES, max_size=12))
def test_tallies(votes: list[tuple[str, int, tuple[str, str], str]]) -> None:
    """Sums are those of the latest vote on each kept comparison, whichever version was live; old votes are deleted."""
    store = VoteStore(per_browser=3, total=4, clock=iter(range(100)).__next__)
    kept: dict[str, tuple[str, tuple[str, str], str]] = {}
    for browser, number, versions, choice in votes:
        comparison = f"{browser}{number}"
        store.vote(browser, comparison, versions, choice)
        kept.pop(comparison, None)
        kept[comparison] = browser, versions, choice
        mine = [name for name, one in kept.items() if one[0] == browser]
        for name in mine[:-3]:
            kept.pop(name)
        kept = dict(list(kept.items())[-4:])
    expected: dict[tuple[str, ...], list[int]] = {}
    for _, versions, choice in kept.values():
        sums = expected.setdefault(tuple(sorted(versions)), [0, 0, 0, 0])
        winner = {"first": versions[0], "second": versions[1]}.get(choice)
        sums[2 + (choice == "neither") if winner is None else sorted(versions).index(winner)] += 1
    found = {
        (one.one, one.other): [one.better_one, one.better_other, one.equal, one.neither] for one in store.tallies()
    }
    assert found == expected
    store.close()


TEXT = strategies.text("ab <&>中文。\n", max_size=30)


def plain(marked: str) -> str:
    return unescape(marked.replace("<mark>", "").replace("</mark>", ""))


def unmarked(marked: str) -> list[str]:
    """The words outside of marks."""
    outside = [part.rpartition("</mark>")[2] for part in marked.split("<mark>")]
    return [word[0] for part in outside for word in WORD.finditer(unescape(part))]


@settings(max_examples=100, deadline=None)
@given(TEXT, TEXT)
def test_marks(first: str, second: str) -> None:
    """Both texts are whole, nothing in them is HTML, and what is not marked is the same on both sides."""
    found = mark_differences(first, second)
    assert found is not None
    one, other, count = found
    assert (plain(one), plain(other)) == (first, second)
    assert unmarked(one) == unmarked(other)
    assert "<" not in one.replace("<mark>", "").replace("</mark>", "")
    assert (count == 0) == ([word[0] for word in WORD.finditer(first)] == [word[0] for word in WORD.finditer(second)])


def test_long_texts_are_not_compared() -> None:
    """The time grows with the square of the length."""
    assert mark_differences("a " * MAX_WORDS, "b") is not None
    assert mark_differences("a", "b " * (MAX_WORDS + 1)) is None


def test_texts_are_complete() -> None:
    """No sentence is missing in either language."""
    for texts in COMPARE_TEXTS.values():
        assert all(vars(texts).values())
        assert len(texts.columns) == 5
