"""The page in front of a fake service."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator

import pytest
from streamlit.testing.v1 import AppTest

from tests.page_fixtures import (
    FakeService,
    ask,
    button_labels,
    free_address,
    open_page,
    picture,
    press,
    reasoning,
    settle,
    sidebar,
    texts,
    wait_until,
)
from ui.client import Fault
from ui.texts import LANGUAGES, language_of

ENGLISH, CHINESE = LANGUAGES["en"], LANGUAGES["zh"]


@pytest.fixture
def service() -> Iterator[FakeService]:
    service = FakeService()
    yield service
    service.close()


@pytest.fixture
def page(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    with open_page(service, monkeypatch) as page:
        yield page


def test_answer_names_version_and_slot(page: AppTest) -> None:
    """Each answer shows the version and slot that gave it."""
    ask(page, "hello")
    assert "Hello 世界" in texts(page)
    assert "Answered by 1.0.0 in slot blue" in texts(page)
    assert not page.warning


def test_request_contains_the_conversation(page: AppTest, service: FakeService) -> None:
    """A request contains all earlier messages and pictures."""
    red = picture()
    ask(page, "What is it?", red)
    ask(page, "Are you sure?")
    url = f"data:image/png;base64,{base64.b64encode(red).decode()}"
    assert service.requests[1]["stream"] is True
    assert service.requests[1]["messages"] == [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}],
        },
        {"role": "assistant", "content": "Hello 世界\u2028\u0085."},
        {"role": "user", "content": "Are you sure?"},
    ]


def test_cutover_without_reload(page: AppTest, service: FakeService) -> None:
    """The sidebar shows the new live version; earlier answers keep theirs."""
    ask(page, "one")
    assert "1.0.0" in sidebar(page)
    service.version, service.slot = "1.1.0", "green"
    ask(page, "two")
    assert "### 1.1.0 " in sidebar(page)
    assert "1.0.0 → **1.1.0**" in sidebar(page)
    assert "Answered by 1.0.0 in slot blue" in texts(page)
    assert "Answered by 1.1.0 in slot green" in texts(page)


def test_a_canary_is_no_cutover(page: AppTest, service: FakeService) -> None:
    """While a candidate answers other requests, the sidebar shows the live version, and no change of it."""
    service.candidate = "1.1.0", "green"
    for number in range(3):
        ask(page, f"question {number}")
    assert "### 1.0.0 " in sidebar(page)
    assert ENGLISH.changes not in sidebar(page)


def test_connections_are_kept(page: AppTest, service: FakeService) -> None:
    """Questions and requests of the live version share kept connections."""
    for number in range(4):
        ask(page, f"question {number}")
    assert service.connections <= 2


def test_new_chat(page: AppTest, service: FakeService) -> None:
    """After "new chat" earlier messages are neither shown nor sent."""
    ask(page, "old")
    press(page, ENGLISH.new_chat)
    assert not page.chat_message
    ask(page, "new")
    assert [message["content"] for message in service.requests[1]["messages"]] == ["new"]


def test_rerun_during_an_answer(page: AppTest, service: FakeService) -> None:
    """A rerun of the page during an answer neither loses it nor sends the question again."""
    service.allow(1)
    page.chat_input[0].set_value("slowly").run()
    page.segmented_control[0].set_value("zh").run()
    service.allow()
    settle(page)
    assert "Hello 世界" in texts(page)
    assert len(service.requests) == 1


def test_stop(page: AppTest, service: FakeService) -> None:
    """Stopping keeps the received text, shows that it was stopped, and permits the next question."""
    service.allow(1)
    page.chat_input[0].set_value("at length").run()
    wait_until(lambda: bool(page.session_state["conversation"].exchanges[-1].reply.text))
    page.run()
    press(page, ENGLISH.stop)
    assert "Hel" in texts(page)
    assert "Hello" not in texts(page)
    assert f"slot blue · {ENGLISH.stopped}" in texts(page)
    assert not page.chat_input[0].disabled


def test_reasoning_while_received(page: AppTest, service: FakeService) -> None:
    """Reasoning is expanded while it is received, and collapsed once the answer begins."""
    service.reasoning = ["Let me ", "see."]
    service.allow(1)
    page.chat_input[0].set_value("think").run()
    reply = page.session_state["conversation"].exchanges[0].reply
    wait_until(lambda: bool(reply.reasoning))
    page.run()
    assert reasoning(page) == [(ENGLISH.thinking, True, "Let me")]
    assert ENGLISH.waiting not in texts(page)
    service.allow()
    settle(page)
    service.allow(3)
    page.chat_input[0].set_value("and again").run()
    reply = page.session_state["conversation"].exchanges[1].reply
    wait_until(lambda: bool(reply.text))
    page.run()
    assert "Hel ▍" in texts(page)
    assert [rest for _, *rest in reasoning(page)] == [[False, "Let me see."]] * 2
    service.allow()
    settle(page)
    assert [rest for _, *rest in reasoning(page)] == [[False, "Let me see."]] * 2
    assert all(label.startswith("Thought for ") for label, *_ in reasoning(page))
    page.segmented_control[0].set_value("zh").run()
    assert all(label.startswith("已思考") for label, *_ in reasoning(page))


def test_reasoning_time(page: AppTest, service: FakeService) -> None:
    """The label shows the time from the first reasoning to the first text, without seconds below one."""
    service.reasoning = ["Let me see."]
    ask(page, "briefly")
    service.allow(2)  # a delay of the second delta of the answer does not count
    threading.Timer(1.5, service.allow).start()
    ask(page, "briefly, then at length")
    service.allow(1)
    threading.Timer(1.5, service.allow).start()
    started = time.monotonic()
    ask(page, "think hard")
    briefly, briefly_again, long = [label for label, *_ in reasoning(page)]
    assert briefly == briefly_again == ENGLISH.thought_briefly
    expected = [ENGLISH.thought.format(seconds=seconds) for seconds in range(1, round(time.monotonic() - started) + 1)]
    assert long in expected


def test_reasoning_is_not_sent(page: AppTest, service: FakeService) -> None:
    """Requests contain earlier answers, but not their reasoning."""
    service.reasoning = ["A secret."]
    ask(page, "one")
    ask(page, "two")
    assert "secret" not in json.dumps(service.requests[1])
    assert service.requests[1]["messages"][1] == {"role": "assistant", "content": "Hello 世界\u2028\u0085."}


def test_reasoning_without_an_answer(page: AppTest, service: FakeService) -> None:
    """Reasoning without an answer stays expanded; the exchange is not sent."""
    service.reasoning, service.answer = ["Hm."], []
    ask(page, "one")
    assert [rest for _, *rest in reasoning(page)] == [[True, "Hm."]]
    assert ENGLISH.no_answer_begun in texts(page)
    ask(page, "two")
    assert [message["content"] for message in service.requests[1]["messages"]] == ["two"]


def test_no_reasoning(page: AppTest) -> None:
    """An answer without reasoning has no reasoning box."""
    ask(page, "hello")
    assert reasoning(page) == []


@pytest.mark.parametrize(
    ("status", "fault"),
    [(400, Fault.REJECTED), (413, Fault.TOO_LARGE), (429, Fault.BUSY), (500, Fault.FAILED), (503, Fault.BUSY)],
)
def test_error_responses(page: AppTest, service: FakeService, status: int, fault: Fault) -> None:
    """An error response is shown with a description, a hint and the service's message; the question is kept."""
    service.error = status, {"error": {"message": "one thing was wrong", "type": "x", "param": None, "code": None}}
    ask(page, "my question")
    description, hint = ENGLISH.faults[fault]
    assert description in page.warning[0].value
    assert hint in page.warning[0].value
    assert "one thing was wrong" in page.warning[0].value
    assert "my question" in texts(page)
    assert ENGLISH.retry in button_labels(page)


@pytest.mark.parametrize(
    ("status", "code", "fault", "can_retry"),
    [
        (429, "queue_full", Fault.BUSY, True),
        (429, "queue_timeout", Fault.QUEUE_TIMEOUT, True),
        (400, "context_length_exceeded", Fault.TOO_LONG, False),
    ],
)
def test_error_codes(
    page: AppTest, service: FakeService, status: int, code: str, fault: Fault, *, can_retry: bool
) -> None:
    """Specific error codes have their own texts; a retry is offered only where it can succeed."""
    service.error = status, {"error": {"message": "one thing was wrong", "type": "x", "param": None, "code": code}}
    ask(page, "my question")
    for language in ("en", "zh"):
        page.segmented_control[0].set_value(language).run()
        for text in (*LANGUAGES[language].faults[fault], "one thing was wrong"):
            assert text in page.warning[0].value
        assert (LANGUAGES[language].retry in button_labels(page)) is can_retry


def test_retry(page: AppTest, service: FakeService) -> None:
    """The retry button sends the same request again."""
    red = picture()
    service.error = 500, {"error": {"message": "no", "type": "server_error", "param": None, "code": None}}
    ask(page, "my question", red)
    service.error = None
    press(page, ENGLISH.retry)
    assert not page.warning
    assert "Hello 世界" in texts(page)
    assert service.requests[0] == service.requests[1]
    assert ENGLISH.retry not in button_labels(page)


def test_failed_question_is_not_sent(page: AppTest, service: FakeService) -> None:
    """A rejected question is not part of later requests."""
    service.error = 400, {"error": {"message": "no", "type": "x", "param": None, "code": None}}
    ask(page, "bad")
    service.error = None
    ask(page, "good")
    assert [message["content"] for message in service.requests[1]["messages"]] == ["good"]
    assert "bad" in texts(page)


def test_unreachable_service(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is shown in the sidebar and in the chat."""
    monkeypatch.setenv("GLM_LISTEN", free_address())
    ask(page, "is anybody there?")
    assert ENGLISH.faults[Fault.UNREACHABLE][0] in page.warning[0].value
    assert ENGLISH.unreachable in sidebar(page)
    assert "is anybody there?" in texts(page)
    assert ENGLISH.retry in button_labels(page)


def test_interrupted_stream(page: AppTest, service: FakeService) -> None:
    """A partial answer is shown, and marked as interrupted."""
    service.break_after = 2
    ask(page, "hello")
    assert "Hello" in texts(page)
    assert "世界" not in texts(page)
    assert ENGLISH.faults[Fault.INTERRUPTED][0] in page.warning[0].value
    assert ENGLISH.retry in button_labels(page)


def test_stream_without_done(page: AppTest, service: FakeService) -> None:
    """A stream that ends regularly but without [DONE] is marked as interrupted."""
    service.send_done = False
    ask(page, "hello")
    assert "Hello 世界" in texts(page)
    assert ENGLISH.faults[Fault.INTERRUPTED][0] in page.warning[0].value


def test_error_in_the_stream(page: AppTest, service: FakeService) -> None:
    """An error event in the stream is shown."""
    service.error_in_stream = "the device is gone"
    ask(page, "hello")
    assert "the device is gone" in page.warning[0].value


def test_chinese(page: AppTest, service: FakeService) -> None:
    """Switching the language also changes the texts of earlier exchanges."""
    ask(page, "你好")
    page.segmented_control[0].set_value("zh").run()
    assert "由 blue 槽位的 1.0.0 版本回答" in texts(page)
    assert page.chat_input[0].placeholder == CHINESE.question
    assert CHINESE.live_now in sidebar(page)
    service.error = 500, {"error": {"message": "x", "type": "server_error", "param": None, "code": None}}
    ask(page, "再来")
    assert CHINESE.faults[Fault.FAILED][0] in page.warning[0].value


def test_texts_are_complete() -> None:
    """Both languages have all texts, and a Chinese browser gets Chinese."""
    for language in LANGUAGES.values():
        assert set(language.faults) == set(Fault)
    assert [language_of(locale) for locale in ("zh-CN", "zh", "en-US", "de", None)] == ["zh", "zh", "en", "en", "en"]
