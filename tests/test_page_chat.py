"""Conversations on the page: kept, edited, asked again, refused."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from streamlit.testing.v1 import AppTest

from tests.page_fixtures import (
    PAGE,
    TIMEOUT,
    FakeService,
    ask,
    button_labels,
    open_page,
    picture,
    press,
    settle,
    sidebar,
    texts,
    wait_until,
)
from ui.chat.texts import CHAT_TEXTS

WORDS = CHAT_TEXTS["English"]


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The browser that the pages believe to talk to."""
    browser = ["one"]
    monkeypatch.setattr("ui.chat.view.browser_id", lambda _: browser[0])
    return browser


@pytest.fixture
def service() -> Iterator[FakeService]:
    service = FakeService()
    yield service
    service.close()


@pytest.fixture
def page(service: FakeService, browser: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    with open_page(service, monkeypatch) as page:
        yield page


def reload(page: AppTest) -> AppTest:
    """The same address in a new session."""
    again = AppTest.from_file(PAGE, default_timeout=TIMEOUT)
    for name, values in page.query_params.items():
        again.query_params[name] = values
    return again.run()


def contents(service: FakeService) -> list[list[object]]:
    return [[message["content"] for message in request["messages"]] for request in service.requests]


def test_reload(page: AppTest, service: FakeService, browser: list[str]) -> None:
    """A reload shows the conversation and goes on with it, also during an answer; another browser's does not."""
    ask(page, "one")
    service.allow(1)
    page.chat_input[0].set_value("two").run()
    again = reload(page)
    service.allow()
    settle(again)
    assert texts(again).count("Hello 世界") == 2
    ask(again, "three")
    assert len(contents(service)[-1]) == 5
    browser[0] = "two"
    stranger = reload(page)
    assert not stranger.chat_message
    assert "open-" not in str([button.key for button in stranger.button])


def test_conversations_are_listed_opened_and_deleted(page: AppTest) -> None:
    """A new chat leaves the old one in the list, from which it is opened, and deleted for good."""
    ask(page, "first *question*")
    press(page, "New chat")
    assert not page.chat_message
    ask(page, "second")
    names = [button.label for button in page.sidebar.button if str(button.key).startswith("open-")]
    assert names == ["second", r"first \*question\*"]
    press(page, names[1])
    assert "first *question*" in texts(page)
    press(page, WORDS.delete)
    assert not page.chat_message
    assert [button.label for button in page.sidebar.button if str(button.key).startswith("open-")] == ["second"]


def test_without_cookies_nothing_is_kept(page: AppTest, browser: list[str | None]) -> None:
    """The page says so."""
    browser[0] = None
    press(page, "New chat")
    ask(page, "hello")
    assert WORDS.not_kept in sidebar(page)
    assert not reload(page).chat_message


def test_a_refused_file_holds_the_question_back(page: AppTest, service: FakeService) -> None:
    """Nothing is sent, text and good pictures are kept, and the next attempt sends them together."""
    page.chat_input[0].upload("0.png", picture(), "image/png")
    page.chat_input[0].upload("1.png", b"%PDF-1.7", "image/png")
    page.chat_input[0].set_value("and these?").run()
    assert service.requests == []
    assert not page.chat_message
    assert "1.png is a PDF" in page.warning[0].value
    assert page.chat_input[0].proto.value == "and these?"
    page.chat_input[0].set_value("and these?").run()
    assert service.requests == [], "Enter pressed twice sends nothing"
    assert page.chat_input[0].proto.value == "and these? ", "the browser ignores the text that it was given last"
    page.chat_input[0].upload("c.png", picture(colour="blue"), "image/png")
    page.chat_input[0].set_value("and these? ").run()
    settle(page)
    assert not page.warning
    [[content]] = contents(service)
    assert isinstance(content, list)
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
    assert content[-1]["text"] == "and these?"


def test_a_question_goes_without_a_refused_file_by_choice(page: AppTest, service: FakeService) -> None:
    """A button leaves the file out; the question is sent by the next Enter."""
    ask(page, "and this?", b"%PDF-1.7")
    press(page, WORDS.leave_out)
    assert not page.warning
    assert service.requests == []
    ask(page, "and this?")
    assert contents(service) == [["and this?"]]


def test_too_many_pictures(page: AppTest, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of earlier questions count, since every request carries them."""
    monkeypatch.setenv("GLM_MAX_IMAGES", "2")
    ask(page, "one", picture(), picture())
    ask(page, "two", picture())
    assert len(service.requests) == 1
    assert "would have 3 pictures; at most 2" in page.warning[0].value


def test_edit_and_regenerate(page: AppTest, service: FakeService) -> None:
    """The last question is asked again as it was, or as it was changed, in place of the old one."""
    ask(page, "first")
    ask(page, "secnd", picture())
    press(page, WORDS.regenerate)
    assert contents(service)[2] == contents(service)[1]
    next(button for button in page.button if button.label == WORDS.edit).click().run()
    assert page.chat_input[0].proto.value == "secnd"
    ask(page, "second")
    assert len(page.chat_message) == 4
    earlier, _, edited = contents(service)[3]
    assert earlier == "first"
    assert isinstance(edited, list)
    assert [part["type"] for part in edited] == ["image_url", "text"]
    assert edited[1]["text"] == "second"
    press(page, WORDS.edit)
    press(page, WORDS.cancel)
    ask(page, "third")
    assert len(page.chat_message) == 6


def test_a_question_typed_during_an_answer(page: AppTest, service: FakeService) -> None:
    """It is sent when the answer has ended, with that answer before it; if that failed, it is kept in the input."""
    service.allow(1)
    page.chat_input[0].set_value("one").run()
    page.chat_input[0].set_value("two").run()
    assert WORDS.waiting_question in texts(page)
    assert len(service.requests) == 1
    service.allow()
    settle(page)
    settle(page)
    assert contents(service)[1] == ["one", "Hello 世界\u2028\u0085.", "two"]
    assert WORDS.waiting_question not in texts(page)
    service.allow(1)
    service.error_in_stream = "gone"
    page.chat_input[0].set_value("three").run()
    page.chat_input[0].set_value("four").run()
    service.allow()
    settle(page)
    assert len(service.requests) == 3
    assert page.chat_input[0].proto.value == "four"


def test_settings(page: AppTest, service: FakeService, browser: list[str]) -> None:
    """They are sent with each question and kept with their conversation; what is not set is left to the release."""
    ask(page, "plain")
    assert not {"temperature", "max_tokens", "chat_template_kwargs"} & set(service.requests[0])
    page.text_area[0].set_value("Be brief.").run()
    page.number_input[0].set_value(0.5).run()
    page.number_input[1].set_value(7).run()
    page.selectbox[0].set_value("off").run()
    again = reload(page)
    ask(again, "with settings")
    request = service.requests[1]
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (request["temperature"], request["max_tokens"]) == (0.5, 7)
    assert request["chat_template_kwargs"] == {"enable_thinking": False}
    press(again, "New chat")
    ask(again, "plain")
    assert "temperature" not in service.requests[2]
    assert "Be brief" not in json.dumps(service.requests[2])


def test_times(page: AppTest, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to the first token and the rate stand under an answer, the rate only if the service tells the tokens.

    And if they did not come all at once.
    """
    monkeypatch.setattr("ui.conversation.LEAST_SPAN", 0.0)
    ask(page, "hello")
    assert WORDS.delay.partition("{")[0] in texts(page)
    assert "tokens/s" not in texts(page)
    assert service.requests[0]["stream_options"] == {"include_usage": True}
    service.tokens = 9
    ask(page, "again")
    assert texts(page).count("tokens/s") == 1
    monkeypatch.setattr("ui.conversation.LEAST_SPAN", 60.0)
    ask(page, "once more")
    assert texts(page).count("tokens/s") == 1


def test_examples(page: AppTest, service: FakeService) -> None:
    """The first click asks a question, with a picture if the example has one."""
    press(page, WORDS.examples[0][0])
    [[content]] = contents(service)
    assert isinstance(content, list)
    assert [part["type"] for part in content] == ["image_url", "text"]
    assert WORDS.examples[0][0] not in button_labels(page)[:4]


def test_stop_is_kept(page: AppTest, service: FakeService) -> None:
    """What had arrived of a stopped answer is there after a reload."""
    service.allow(1)
    page.chat_input[0].set_value("at length").run()
    wait_until(lambda: bool(page.session_state["conversation"].exchanges[-1].reply.text))
    page.run()
    press(page, "Stop")
    service.allow()
    assert "Hel" in texts(reload(page))
