"""The page in front of a service that does as it is told."""

from __future__ import annotations

import base64
import io
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

from ui.client import Fault, Live, Service, ServiceError, service_address
from ui.picture import AS_IT_IS, LONGEST_EDGE, prepare
from ui.words import LANGUAGES, language_of

PAGE = Path(__file__).parent.parent / "ui/page.py"
PATIENCE = 20.0
ENGLISH, CHINESE = LANGUAGES["en"], LANGUAGES["zh"]


class Stage:
    """A service on a real socket. `thoughts` and then `words` are what it says; the rest is what it does wrong."""

    def __init__(self) -> None:
        self.version = "1.0.0"
        self.slot = "blue"
        self.thoughts: list[str] = []
        self.words = ["Hel", "lo ", "世界\u2028\u0085."]
        self.error: tuple[int, dict[str, Any]] | None = None
        self.error_in_stream = ""
        self.break_after: int | None = None
        self._allowed = math.inf
        self._moved = threading.Condition()
        self.asked: list[dict[str, Any]] = []
        self.connections = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def allow(self, pieces: float = math.inf) -> None:
        """Say no more than so many pieces of an answer until the next call."""
        with self._moved:
            self._allowed = pieces
            self._moved.notify_all()

    def wait_for(self, piece: int) -> None:
        with self._moved:
            self._moved.wait_for(lambda: piece < self._allowed, PATIENCE)

    def close(self) -> None:
        self.allow()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stage = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                stage.connections += 1

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

            def do_GET(self) -> None:
                self._send(200, {"version": stage.version, "slot": stage.slot, "generation": 1})

            def do_POST(self) -> None:
                stage.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                if stage.error:
                    self._send(*stage.error)
                else:
                    self._stream()

            def _send(self, status: int, document: dict[str, Any]) -> None:
                body = json.dumps(document).encode()
                self._head(status, "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _head(self, status: int, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("X-Model-Version", stage.version)
                self.send_header("X-Slot", stage.slot)

            def _stream(self) -> None:
                self._head(200, "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                said = [("reasoning_content", text) for text in stage.thoughts]
                said += [("content", text) for text in stage.words]
                for number, (kind, text) in enumerate(said):
                    if number == stage.break_after:
                        self.close_connection = True
                        return
                    stage.wait_for(number)
                    self._event({"choices": [{"index": 0, "delta": {kind: text}, "finish_reason": None}]})
                if stage.error_in_stream:
                    self._event({"error": {"message": stage.error_in_stream, "type": "server_error"}})
                else:
                    self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                    self._chunk(b"data: [DONE]\n\n")
                self._chunk(b"")

            def _event(self, document: dict[str, Any]) -> None:
                self._chunk(b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n")

            def _chunk(self, data: bytes) -> None:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()

        return Handler


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


@pytest.fixture
def page(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    monkeypatch.setenv("GLM_LISTEN", stage.address)
    monkeypatch.syspath_prepend(str(PAGE.parent.parent))
    opened: list[Service] = []
    start = Service.__init__

    def note(service: Service, address: str) -> None:
        start(service, address)
        opened.append(service)

    monkeypatch.setattr(Service, "__init__", note)
    yield AppTest.from_file(PAGE, default_timeout=PATIENCE).run()
    for service in opened:
        service.close()
    st.cache_resource.clear()


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def picture(width: int = 8, height: int = 8, kind: str = "PNG", colour: str = "red") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(data, kind)
    return data.getvalue()


def ask(page: AppTest, text: str, *pictures: bytes) -> None:
    """Send a question and look until its answer has ended, as the browser does."""
    for number, data in enumerate(pictures):
        page.chat_input[0].upload(f"{number}.png", data, "image/png")
    page.chat_input[0].set_value(text).run()
    settle(page)


def wait_until(come: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not come():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


def settle(page: AppTest) -> None:
    wait_until(lambda: not page.session_state["conversation"].running)
    page.run()
    assert not page.exception


def texts(page: AppTest) -> str:
    """All that stands in the chat."""
    return "\n".join(
        str(element.value)
        for message in page.chat_message
        for element in (*message.text, *message.markdown, *message.caption, *message.warning)
    )


def sidebar(page: AppTest) -> str:
    return "\n".join(str(element.value) for element in (*page.sidebar.markdown, *page.sidebar.caption))


def thoughts(page: AppTest) -> list[tuple[str, bool, str]]:
    """The label, whether it is unfolded, and the text of each thought."""
    return [
        (block.label, block.proto.expanded, "\n".join(str(element.value) for element in block.markdown))
        for message in page.chat_message
        for block in message.expander
    ]


def labels(page: AppTest) -> list[str]:
    return [button.label for button in page.button]


def press(page: AppTest, label: str) -> None:
    next(button for button in page.button if button.label == label).click().run()
    settle(page)


def test_an_answer_says_which_version_and_slot_gave_it(page: AppTest) -> None:
    """Under each answer stand the version and the slot that gave it."""
    ask(page, "hello")
    assert "Hello 世界" in texts(page)
    assert "Answered by 1.0.0 in slot blue" in texts(page)
    assert not page.warning


def test_the_conversation_is_sent_along(page: AppTest, stage: Stage) -> None:
    """The model sees all earlier turns, pictures included."""
    red = picture()
    ask(page, "What is it?", red)
    ask(page, "Are you sure?")
    url = f"data:image/png;base64,{base64.b64encode(red).decode()}"
    assert stage.asked[1]["stream"] is True
    assert stage.asked[1]["messages"] == [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}],
        },
        {"role": "assistant", "content": "Hello 世界\u2028\u0085."},
        {"role": "user", "content": "Are you sure?"},
    ]


def test_a_cutover_is_seen_without_reloading(page: AppTest, stage: Stage) -> None:
    """The sidebar follows the live version, and old answers keep the name of theirs."""
    ask(page, "one")
    assert "1.0.0" in sidebar(page)
    stage.version, stage.slot = "1.1.0", "green"
    ask(page, "two")
    assert "### 1.1.0 " in sidebar(page)
    assert "1.0.0 → **1.1.0**" in sidebar(page)
    assert "Answered by 1.0.0 in slot blue" in texts(page)
    assert "Answered by 1.1.0 in slot green" in texts(page)


def test_the_page_keeps_its_connections(page: AppTest, stage: Stage) -> None:
    """Questions and looks share kept connections, which are then among those that a cutover moves."""
    for number in range(4):
        ask(page, f"question {number}")
    assert stage.connections <= 2


def test_a_new_chat_forgets(page: AppTest, stage: Stage) -> None:
    """After "new chat" nothing old is shown or sent."""
    ask(page, "old")
    press(page, ENGLISH.new_chat)
    assert not page.chat_message
    ask(page, "new")
    assert [message["content"] for message in stage.asked[1]["messages"]] == ["new"]


def test_an_answer_outlives_a_rerun_of_the_page(page: AppTest, stage: Stage) -> None:
    """Touching the page while an answer arrives neither loses it nor asks again."""
    stage.allow(1)
    page.chat_input[0].set_value("slowly").run()
    page.segmented_control[0].set_value("zh").run()
    assert page.chat_input[0].disabled
    stage.allow()
    settle(page)
    assert "Hello 世界" in texts(page)
    assert len(stage.asked) == 1


def test_an_answer_can_be_stopped(page: AppTest, stage: Stage) -> None:
    """Stopping keeps what has arrived, says so, and lets the next question go at once."""
    stage.allow(1)
    page.chat_input[0].set_value("at length").run()
    wait_until(lambda: bool(page.session_state["conversation"].exchanges[-1].reply.text))
    page.run()
    press(page, ENGLISH.stop)
    assert "Hel" in texts(page)
    assert "Hello" not in texts(page)
    assert f"slot blue · {ENGLISH.stopped}" in texts(page)
    assert not page.chat_input[0].disabled


def test_a_thought_is_shown_while_it_comes(page: AppTest, stage: Stage) -> None:
    """A thought is open while it grows and folded once the answer begins; it stays with its turn."""
    stage.thoughts = ["Let me ", "see."]
    stage.allow(1)
    page.chat_input[0].set_value("think").run()
    reply = page.session_state["conversation"].exchanges[0].reply
    wait_until(lambda: bool(reply.thought))
    page.run()
    assert thoughts(page) == [(ENGLISH.thinking, True, "Let me")]
    assert ENGLISH.waiting not in texts(page)
    stage.allow()
    settle(page)
    stage.allow(3)
    page.chat_input[0].set_value("and again").run()
    reply = page.session_state["conversation"].exchanges[1].reply
    wait_until(lambda: bool(reply.text))
    page.run()
    assert "Hel ▍" in texts(page)
    assert [rest for _, *rest in thoughts(page)] == [[False, "Let me see."]] * 2
    stage.allow()
    settle(page)
    assert [rest for _, *rest in thoughts(page)] == [[False, "Let me see."]] * 2
    assert all(label.startswith("Thought for ") for label, *_ in thoughts(page))
    page.segmented_control[0].set_value("zh").run()
    assert all(label.startswith("已思考") for label, *_ in thoughts(page))


def test_the_time_of_a_thought_is_told(page: AppTest, stage: Stage) -> None:
    """The label counts from the thought's first piece to the answer's, and names no seconds below one."""
    stage.thoughts = ["Let me see."]
    ask(page, "briefly")
    stage.allow(2)  # the answer's time is none of the thought's
    threading.Timer(1.5, stage.allow).start()
    ask(page, "briefly, then at length")
    stage.allow(1)
    threading.Timer(1.5, stage.allow).start()
    began = time.monotonic()
    ask(page, "think hard")
    briefly, briefly_again, long = [label for label, *_ in thoughts(page)]
    assert briefly == briefly_again == ENGLISH.thought_briefly
    expected = [ENGLISH.thought.format(seconds=seconds) for seconds in range(1, round(time.monotonic() - began) + 1)]
    assert long in expected


def test_a_thought_is_not_sent_along(page: AppTest, stage: Stage) -> None:
    """The model reads what it answered, never what it thought."""
    stage.thoughts = ["A secret."]
    ask(page, "one")
    ask(page, "two")
    assert "secret" not in json.dumps(stage.asked[1])
    assert stage.asked[1]["messages"][1] == {"role": "assistant", "content": "Hello 世界\u2028\u0085."}


def test_a_thought_without_an_answer_stays_open(page: AppTest, stage: Stage) -> None:
    """A thought that led nowhere is all there is: it stays in sight, and no answer is claimed or sent along."""
    stage.thoughts, stage.words = ["Hm."], []
    ask(page, "one")
    assert [rest for _, *rest in thoughts(page)] == [[True, "Hm."]]
    assert ENGLISH.unbegun in texts(page)
    ask(page, "two")
    assert [message["content"] for message in stage.asked[1]["messages"]] == ["two"]


def test_no_thought_no_box(page: AppTest) -> None:
    """A model that does not think has no empty thought under its name."""
    ask(page, "hello")
    assert thoughts(page) == []


@pytest.mark.parametrize(
    ("status", "fault"),
    [(400, Fault.REJECTED), (413, Fault.TOO_LARGE), (429, Fault.BUSY), (500, Fault.FAILED), (503, Fault.BUSY)],
)
def test_error_objects_are_put_into_words(page: AppTest, stage: Stage, status: int, fault: Fault) -> None:
    """What the service objects to is shown in its words and ours, and the question stays."""
    stage.error = status, {"error": {"message": "one thing was wrong", "type": "x", "param": None, "code": None}}
    ask(page, "my question")
    what, todo = ENGLISH.faults[fault]
    assert what in page.warning[0].value
    assert todo in page.warning[0].value
    assert "one thing was wrong" in page.warning[0].value
    assert "my question" in texts(page)
    assert ENGLISH.retry in labels(page)


@pytest.mark.parametrize(
    ("status", "code", "fault", "again"),
    [
        (429, "queue_full", Fault.BUSY, True),
        (429, "queue_timeout", Fault.WAITED, True),
        (400, "context_length_exceeded", Fault.TOO_LONG, False),
    ],
)
def test_codes_are_put_into_words(
    page: AppTest, stage: Stage, status: int, code: str, fault: Fault, *, again: bool
) -> None:
    """Where the service's code says more than its status, so do we; asking again is offered only where it may help."""
    stage.error = status, {"error": {"message": "one thing was wrong", "type": "x", "param": None, "code": code}}
    ask(page, "my question")
    for language in ("en", "zh"):
        page.segmented_control[0].set_value(language).run()
        for text in (*LANGUAGES[language].faults[fault], "one thing was wrong"):
            assert text in page.warning[0].value
        assert (LANGUAGES[language].retry in labels(page)) is again


def test_a_failed_question_can_be_asked_again(page: AppTest, stage: Stage) -> None:
    """The retry button puts the same question again, pictures and all."""
    red = picture()
    stage.error = 500, {"error": {"message": "no", "type": "server_error", "param": None, "code": None}}
    ask(page, "my question", red)
    stage.error = None
    press(page, ENGLISH.retry)
    assert not page.warning
    assert "Hello 世界" in texts(page)
    assert stage.asked[0] == stage.asked[1]
    assert ENGLISH.retry not in labels(page)


def test_a_failed_question_is_not_sent_along(page: AppTest, stage: Stage) -> None:
    """A question that the service could not take does not spoil the ones after it."""
    stage.error = 400, {"error": {"message": "no", "type": "x", "param": None, "code": None}}
    ask(page, "bad")
    stage.error = None
    ask(page, "good")
    assert [message["content"] for message in stage.asked[1]["messages"]] == ["good"]
    assert "bad" in texts(page)


def test_nobody_there(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is told in plain words, in the sidebar as in the chat."""
    monkeypatch.setenv("GLM_LISTEN", free_address())
    ask(page, "is anybody there?")
    assert ENGLISH.faults[Fault.UNREACHABLE][0] in page.warning[0].value
    assert ENGLISH.not_reachable in sidebar(page)
    assert "is anybody there?" in texts(page)
    assert ENGLISH.retry in labels(page)


def test_a_stream_that_breaks_off(page: AppTest, stage: Stage) -> None:
    """A part is never taken for the whole: it is shown, and said to be one."""
    stage.break_after = 2
    ask(page, "hello")
    assert "Hello" in texts(page)
    assert "世界" not in texts(page)
    assert ENGLISH.faults[Fault.BROKEN][0] in page.warning[0].value
    assert ENGLISH.retry in labels(page)


def test_an_error_in_the_stream(page: AppTest, stage: Stage) -> None:
    """An engine that fails midway is told as such."""
    stage.error_in_stream = "the device is gone"
    ask(page, "hello")
    assert "the device is gone" in page.warning[0].value


def test_a_file_that_is_no_picture(page: AppTest, stage: Stage) -> None:
    """A file that only claims to be a picture is refused before anything is sent, and the question stays."""
    ask(page, "and this?", b"no picture")
    assert ENGLISH.faults[Fault.PICTURE][0].format(detail="0.png") in page.warning[0].value
    assert "and this?" in texts(page)
    assert stage.asked == []
    assert ENGLISH.retry not in labels(page)


def test_chinese(page: AppTest, stage: Stage) -> None:
    """The language switches in place, for what was said before as well."""
    ask(page, "你好")
    page.segmented_control[0].set_value("zh").run()
    assert "由 blue 槽位的 1.0.0 版本回答" in texts(page)
    assert page.chat_input[0].placeholder == CHINESE.ask
    assert CHINESE.live_now in sidebar(page)
    stage.error = 500, {"error": {"message": "x", "type": "server_error", "param": None, "code": None}}
    ask(page, "再来")
    assert CHINESE.faults[Fault.FAILED][0] in page.warning[0].value


def test_both_languages_say_everything() -> None:
    """No text is missing in either language, and a Chinese browser gets Chinese."""
    for words in LANGUAGES.values():
        assert set(words.faults) == set(Fault)
    assert [language_of(locale) for locale in ("zh-CN", "zh", "en-US", "de", None)] == ["zh", "zh", "en", "en", "en"]


def test_large_pictures_are_scaled_down() -> None:
    """No picture is sent with an edge above the limit, and small ones are sent as they are."""
    small = picture()
    assert prepare("small.png", small).data == small
    large = prepare("large.png", picture(3 * LONGEST_EDGE, LONGEST_EDGE))
    with Image.open(io.BytesIO(large.data)) as image:
        assert image.size == (LONGEST_EDGE, LONGEST_EDGE // 3 + 1)
    assert len(large.data) < AS_IT_IS
    assert large.url.startswith("data:image/jpeg;base64,")


def test_a_scaled_photo_stays_upright() -> None:
    """A photo keeps the orientation that its EXIF tells."""
    data = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (2 * LONGEST_EDGE, LONGEST_EDGE), "red").save(data, "JPEG", exif=exif)
    with Image.open(io.BytesIO(prepare("photo.jpg", data.getvalue()).data)) as image:
        assert image.size == (LONGEST_EDGE // 2, LONGEST_EDGE)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", picture(64, 64)[:60]])
def test_damaged_pictures_are_refused(data: bytes) -> None:
    """Whatever Pillow makes of it, damage is named as such."""
    with pytest.raises(ServiceError) as caught:
        prepare("x.png", data)
    assert caught.value.fault is Fault.PICTURE


def test_who_is_live(stage: Stage) -> None:
    """The client tells who is live, that nobody answers, that nobody listens, and that it is someone else."""
    service = Service(stage.address)
    assert service.live() == Live("1.0.0", "blue")
    service.close()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert fault_of(f"127.0.0.1:{silent.getsockname()[1]}") is Fault.SILENT
    assert fault_of(free_address()) is Fault.UNREACHABLE
    stage._server.RequestHandlerClass.do_GET = lambda handler: handler._send(200, {})  # type: ignore[attr-defined]
    assert fault_of(stage.address) is Fault.STRANGE


def fault_of(address: str) -> Fault:
    service = Service(address)
    try:
        with pytest.raises(ServiceError) as caught:
            service.live()
    finally:
        service.close()
    return caught.value.fault


@pytest.mark.parametrize(("listen", "expected"), [("", "127.0.0.1:8000"), ("10.0.0.1:80", "10.0.0.1:80")])
def test_the_address_comes_from_the_unit(monkeypatch: pytest.MonkeyPatch, listen: str, expected: str) -> None:
    """GLM_LISTEN says where the service is."""
    monkeypatch.setenv("GLM_LISTEN", listen)
    assert service_address() == expected


def test_a_service_on_all_addresses_is_reached_on_this_host(stage: Stage) -> None:
    """0.0.0.0 is where a service listens, not where one can connect."""
    service = Service(stage.address.replace("127.0.0.1", "0.0.0.0"))
    assert service.live().version == "1.0.0"
    service.close()
