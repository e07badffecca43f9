"""The conversations that the page keeps for browsers."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import MutableMapping
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ui.chat.browser import COOKIE, BrowserCookie, browser_id
from ui.chat.documents import from_json, to_json, to_markdown
from ui.chat.library import Library, open_library
from ui.chat.options import Options
from ui.chat.store import Bounds, ConversationStore
from ui.client import Fault, LiveSlot, ServiceError
from ui.conversation import Conversation, Exchange, Question, Reply
from ui.picture import Picture

BROWSERS = st.sampled_from(["one", "two", "three"])
IDS = st.sampled_from("abcd")


class Store(RuleBasedStateMachine):
    """The store beside dictionaries: what is saved is read back, and no browser sees another's."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.bounds = Bounds(count=3, size=20, total=45, age=50.0)
        self.store = ConversationStore(None, self.bounds, lambda: self.now)
        self.kept: list[tuple[str, str, bytes, float]] = []  # the newest first

    @rule(browser=BROWSERS, identifier=IDS, data=st.binary(min_size=1, max_size=25))
    def save(self, browser: str, identifier: str, data: bytes) -> None:
        self.now += 1
        fits = len(data) <= self.bounds.size
        assert self.store.save(browser, identifier, f"title of {data!r}", data) is fits
        if fits:
            self.drop(browser, identifier)
            self.kept.insert(0, (browser, identifier, data, self.now))
            self.prune(browser)

    @rule(browser=BROWSERS, identifier=IDS)
    def delete(self, browser: str, identifier: str) -> None:
        self.store.delete(browser, identifier)
        self.drop(browser, identifier)

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def drop(self, browser: str, identifier: str) -> None:
        self.kept = [one for one in self.kept if one[:2] != (browser, identifier)]

    def prune(self, browser: str) -> None:
        self.kept = [one for one in self.kept if one[3] >= self.now - self.bounds.age]
        size, count, total, kept = 0, 0, 0, []
        for one in self.kept:
            if one[0] == browser:
                size, count = size + len(one[2]), count + 1
                if size > self.bounds.size or count > self.bounds.count:
                    continue
            total += len(one[2])
            if total <= self.bounds.total:
                kept.append(one)
        self.kept = kept

    @invariant()
    def reads_back(self) -> None:
        young = [one for one in self.kept if one[3] >= self.now - self.bounds.age]
        for browser in ("one", "two", "three"):
            mine = {identifier: data for owner, identifier, data, _ in young if owner == browser}
            assert {identifier: self.store.load(browser, identifier) for identifier in mine} == mine
            assert [one.id for one in self.store.list(browser)] == list(mine)
            assert [one.title for one in self.store.list(browser)] == [f"title of {data!r}" for data in mine.values()]
            for absent in set("abcd") - set(mine):
                assert self.store.load(browser, absent) is None

    def teardown(self) -> None:
        self.store.close()


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)


TEXT = st.text(max_size=20)
SECONDS = st.none() | st.floats(0, 100)


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    reply = Reply.ended()
    reply.text, reply.reasoning, reply.finish_reason = draw(TEXT), draw(TEXT), draw(TEXT)
    reply.stopped = draw(st.booleans())
    reply.first_token_time, reply.token_rate = draw(SECONDS), draw(SECONDS)
    reply.live = draw(st.none() | st.builds(LiveSlot, TEXT.filter(bool), TEXT))
    reply.error = draw(st.none() | st.builds(ServiceError, st.sampled_from(Fault), TEXT))
    return reply


PICTURES = st.builds(Picture, TEXT, st.just("image/png"), st.binary(max_size=30))
QUESTIONS = st.builds(Question, TEXT, st.lists(PICTURES, max_size=2).map(tuple))
OPTIONS = st.builds(
    Options, TEXT, st.none() | st.floats(0, 2), st.none() | st.integers(1, 9), st.none() | st.booleans()
)
EXCHANGES = st.builds(Exchange, QUESTIONS, replies())
CONVERSATIONS = st.builds(
    Conversation,
    name=TEXT,
    options=OPTIONS,
    exchanges=st.lists(EXCHANGES, min_size=1, max_size=3),
    waiting=st.none() | QUESTIONS,
)


@settings(max_examples=15, deadline=None)
@given(CONVERSATIONS)
def test_documents(conversation: Conversation) -> None:
    """A conversation is the same after writing and reading, and its Markdown has all of its texts."""
    again = from_json(to_json(conversation))
    assert to_json(again) == to_json(conversation)
    assert [exchange.question for exchange in again.exchanges] == [one.question for one in conversation.exchanges]
    assert (again.options, again.title, again.waiting) == (
        conversation.options,
        conversation.title,
        conversation.waiting,
    )
    markdown = to_markdown(conversation, you="You", thought="Thinking", picture="Picture")
    for exchange in conversation.exchanges:
        assert exchange.question.text in markdown
        assert exchange.reply.text in markdown


def test_a_reply_that_had_not_ended_is_interrupted() -> None:
    """After a restart of the page it has what had arrived, and can be asked again."""
    reply = Reply()
    reply.text = "Hel"
    [exchange] = from_json(to_json(Conversation(exchanges=[Exchange(Question("?"), reply)]))).exchanges
    assert exchange.reply.complete
    assert exchange.reply.text == "Hel"
    assert exchange.reply.error is not None
    assert exchange.reply.error.fault is Fault.INTERRUPTED


def test_pages_of_a_browser_share_a_conversation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is one object while somebody holds it, and read from the file after a restart; others do not get it."""
    monkeypatch.setenv("GLM_STATE", str(tmp_path))
    library = open_library()
    conversation = library.new("one")
    conversation.exchanges = [Exchange(Question("hello"), Reply.ended())]
    conversation.save(conversation)
    identifier = conversation.id
    assert library.open("one", identifier) is conversation
    assert library.open("two", identifier) is None
    assert library.open(None, identifier) is None
    del conversation
    gc.collect()
    for later in (library, open_library()):
        opened = later.open("one", identifier)
        assert opened is not None
        assert opened.exchanges[0].question.text == "hello"
    assert (tmp_path / "ui").stat().st_mode & 0o077 == 0


def test_a_deleted_conversation_stays_deleted() -> None:
    """A reply that ends later does not save it again."""
    library = Library(ConversationStore())
    conversation = library.new("one")
    reply = Reply()
    conversation.exchanges = [Exchange(Question("hello"), reply)]
    save = conversation.save
    save(conversation)
    library.delete("one", conversation)
    save(conversation)
    assert reply.stopped
    assert library.list("one") == []
    assert library.open("one", conversation.id) is None


def test_a_full_disk_does_not_end_the_chat(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be saved, listed or read is logged."""
    store = ConversationStore()
    library = Library(store)
    conversation = library.new("one")
    conversation.exchanges = [Exchange(Question("hello"), Reply.ended())]
    store.close()
    conversation.save(conversation)
    assert library.list("one") == []
    assert library.open("one", "x") is None
    assert len(caplog.messages) == 3


def cookie_of(headers: list[tuple[bytes, bytes]], scheme: str = "http") -> str:
    """The Set-Cookie header of the answer to a request with these headers."""
    sent: list[MutableMapping[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {}

    scope = {"type": "http", "scheme": scheme, "headers": headers}
    asyncio.run(BrowserCookie(app)(scope, receive, send))
    return json.dumps([value.decode() for name, value in sent[0]["headers"] if name == b"set-cookie"])


HTML = (b"accept", b"text/html,*/*")


def test_a_browser_gets_an_identifier_and_keeps_it() -> None:
    """No script can read it and it is never guessed; a forged value is replaced."""
    [first] = json.loads(cookie_of([HTML]))
    assert all(part in first for part in ("HttpOnly", "SameSite=Lax", "Max-Age="))
    assert "Secure" not in first
    assert "Secure" in cookie_of([HTML], "https")
    value = SimpleCookie(first)[COOKIE].value
    assert browser_id({COOKIE: value}) == value
    assert value not in cookie_of([HTML])
    assert value in cookie_of([HTML, (b"cookie", f"other=1; {COOKIE}={value}".encode())])
    assert "forged" not in cookie_of([HTML, (b"cookie", f"{COOKIE}=forged".encode())])
    assert browser_id({COOKIE: "forged"}) is None


def test_only_documents_are_answered_with_the_cookie() -> None:
    """Parallel requests for styles and scripts would otherwise each bring a new one."""
    assert cookie_of([(b"accept", b"*/*")]) == "[]"
