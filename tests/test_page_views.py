"""The chat in a browser, with all that it has, in each view: two languages, light and dark, wide and on a phone."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.browser_fixtures import chromium, fake_host, picture
from tests.page_fixtures import FakeService, wait_until
from tests.page_views import (
    VIEWS,
    View,
    assert_in_order,
    close_sidebar,
    live_version_in_sight,
    open_sidebar,
    open_view,
)
from ui.chat.texts import CHAT_TEXTS, ChatTexts
from ui.picture import MAX_FILE, Limits

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FilePayload, Page

pytestmark = pytest.mark.long

TRANSFER = """(files) => {
  const transfer = new DataTransfer();
  for (const {name, type, data} of files)
    transfer.items.add(new File([Uint8Array.from(atob(data), (one) => one.charCodeAt(0))], name, {type}));
  return transfer;
}"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeService, str]]:
    """A page in front of a fake service."""
    with fake_host(tmp_path_factory.mktemp("page")) as host:
        yield host


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium."""
    with chromium() as browser:
        yield browser


class Chat:
    """The chat of one view, as its user sees it."""

    def __init__(self, page: Page, view: View, service: FakeService) -> None:
        self.page, self.view, self.service = page, view, service
        self.words: ChatTexts = CHAT_TEXTS[view.texts.name]
        self.input = page.get_by_test_id("stChatInputTextArea")
        self.messages = page.get_by_test_id("stChatMessage")

    def send(self, text: str) -> None:
        """Type a text and press Enter."""
        self.input.fill(text)
        self.input.press("Enter")

    def send_attached(self, text: str) -> None:
        """Type a text and press Enter until it is sent: that has no effect during an upload."""
        before = self.messages.get_by_text(text).count()
        self.input.fill(text)
        for _ in range(60):
            self.input.press("Enter")
            self.page.wait_for_timeout(500)
            if self.messages.get_by_text(text).count() > before or self.refusal.count():
                return
        pytest.fail(f"{text!r} could not be sent")

    def wait_for_input(self, text: str) -> None:
        """Wait until the input has this text, maybe with a blank, which the page puts there after what is above it."""
        from playwright.sync_api import expect

        expect(self.input).to_have_value(re.compile(rf"^{re.escape(text)} ?$"), timeout=60_000)

    @property
    def refusal(self) -> Any:
        return self.page.get_by_test_id("stAlert")

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name)

    def only(self, name: str) -> Any:
        """The button of this name, once the one of the drawing before is gone."""
        from playwright.sync_api import expect

        expect(self.button(name)).to_have_count(1, timeout=60_000)
        return self.button(name)

    def wait_for_answers(self, count: int) -> None:
        """Wait until so many answers are there, and none is under way."""
        self.messages.nth(2 * count - 1).get_by_text(
            self.view.texts.answered_by.format(version="1.0.0", slot="blue")
        ).wait_for()
        # one of the drawing before may still be there
        self.button(self.view.texts.stop).first.wait_for(state="detached")
        self.only(self.words.regenerate).wait_for()
        assert self.messages.count() == 2 * count
        assert self.page.get_by_test_id("stAlert").count() == 0

    def attach(self, *files: FilePayload | Path) -> None:
        """Choose files."""
        chooser = self.page.locator("[data-testid=stChatInput] input[type=file]")
        chosen: Any = list(files) if len(files) > 1 else files[0]
        chooser.set_input_files(chosen)
        last = files[-1]
        name = last.name if isinstance(last, Path) else last["name"]
        self.page.get_by_test_id("stChatInput").get_by_text(name).wait_for()

    def transfer(self, *files: FilePayload) -> Any:
        """Return a DataTransfer of the browser."""
        described = [
            {"name": one["name"], "type": one["mimeType"], "data": base64.b64encode(one["buffer"]).decode()}
            for one in files
        ]
        return self.page.evaluate_handle(TRANSFER, described)

    @property
    def last(self) -> list[dict[str, Any]]:
        """The messages of the last request."""
        found: list[dict[str, Any]] = self.service.requests[-1]["messages"]
        return found


def file(name: str, data: bytes, kind: str = "image/png") -> FilePayload:
    return {"name": name, "mimeType": kind, "buffer": data}


def pictures_of(message: dict[str, Any]) -> int:
    return (
        sum(part["type"] == "image_url" for part in message["content"]) if isinstance(message["content"], list) else 0
    )


def huge() -> bytes:
    """A picture of more pixels than are allowed, in a few bytes."""
    data = io.BytesIO()
    side = int((Limits.from_environment().pixels * 1.1) ** 0.5) + 1
    Image.new("1", (side, side)).save(data, "PNG")
    return data.getvalue()


REFUSED: dict[str, bytes] = {
    "a.pdf": b"%PDF-1.7 ...",
    "a.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "notes.txt": b"no picture",
    "broken.png": picture("red")[:200],
    "huge.png": huge(),
    "heavy.png": picture("red") + bytes(MAX_FILE),
}

REFUSAL_WORDS = {
    *["PDF", "SVG", "PNG", "WebP", "JPEG", "GIF", "BMP", "MiB", "MB", "red", "circle"],
    *re.findall(r"[A-Za-z]+", " ".join(REFUSED)),
}
QUESTION_WORDS = {*["what", "is", "it", "are", "these"]}


@pytest.fixture(params=VIEWS, ids=str)
def chat(request: pytest.FixtureRequest, browser: Browser, host: tuple[FakeService, str]) -> Iterator[Chat]:
    """The chat in each view, with what the browser complains of."""
    service, address = host
    service.allow()
    service.requests.clear()
    service.answer, service.tokens = ["A red ", "circle."], 5
    page = open_view(browser, request.param)
    page.set_default_timeout(60_000)  # no model is loaded
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    with contextlib.closing(page.context):
        page.goto(f"http://{address}")
        page.get_by_test_id("stChatInputTextArea").wait_for()
        yield Chat(page, request.param, service)
        assert errors == []


def test_questions(chat: Chat) -> None:
    """An example, paste, drag, a question typed during an answer, stop, regenerate, edit; kept by a reload."""
    page, service, words, texts = chat.page, chat.service, chat.words, chat.view.texts
    live_version_in_sight(page, "1.0.0")
    question, example = words.examples[0]
    assert example
    chat.button(question).click()
    chat.wait_for_answers(1)
    assert pictures_of(chat.last[-1]) == 1
    page.get_by_text(words.delay.partition("{")[0].strip()).wait_for()

    chat.input.evaluate(
        "(node, transfer) => node.dispatchEvent("
        "new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true, cancelable: true}))",
        chat.transfer(file("pasted.png", picture("green"))),
    )
    page.get_by_test_id("stChatInput").get_by_text("pasted.png").wait_for()
    chat.send_attached("pasted")
    chat.wait_for_answers(2)
    assert pictures_of(chat.last[-1]) == 1

    dragged = chat.transfer(file("dragged.png", picture("blue")), file("dragged too.png", picture("red")))
    page.locator("body").dispatch_event("dragover", {"dataTransfer": dragged})
    zone = page.get_by_text("Drag and drop").locator("xpath=preceding-sibling::*[1]")
    for event in ("dragenter", "dragover", "drop"):
        zone.dispatch_event(event, {"dataTransfer": dragged})
    page.get_by_test_id("stChatInput").get_by_text("dragged.png").wait_for()
    chat.send_attached("dragged")
    chat.wait_for_answers(3)
    assert pictures_of(chat.last[-1]) == 2

    service.allow(1)
    chat.send("slowly")
    page.get_by_text("A red ▍").wait_for()
    chat.send("typed meanwhile")
    page.get_by_text(words.waiting_question).wait_for()
    live_version_in_sight(page, "1.0.0")
    service.allow()
    chat.wait_for_answers(5)

    service.allow(1)
    chat.send("never mind")
    page.get_by_text("A red ▍").wait_for()
    chat.button(texts.stop).click()
    page.get_by_text(texts.stopped, exact=False).last.wait_for()
    service.allow()
    before = len(service.requests)
    chat.only(words.regenerate).click()
    wait_until(lambda: len(service.requests) == before + 1)
    chat.wait_for_answers(6)

    chat.button(words.edit).click()
    page.get_by_text(words.editing).wait_for()
    chat.wait_for_input("never mind")
    chat.send("better now")
    page.get_by_text("better now").wait_for()
    chat.wait_for_answers(6)
    assert page.get_by_text("never mind").count() == 0
    assert_in_order(
        page, chat.view, {"pasted", "dragged", "slowly", "typed", "meanwhile", "better", "now", "red", "circle"}
    )
    live_version_in_sight(page, "1.0.0")

    page.reload()
    page.get_by_text("better now").wait_for()
    assert chat.messages.count() == 12
    live_version_in_sight(page, "1.0.0")


def test_conversations(chat: Chat) -> None:
    """Settings, a name, export as Markdown and JSON, another conversation and back, deletion."""
    page, words, texts = chat.page, chat.words, chat.view.texts
    open_sidebar(page)
    chat.button(words.settings).click()
    page.get_by_label(words.system).fill("Be brief.")
    page.get_by_label(words.temperature).fill("0.5")
    page.get_by_label(words.temperature).press("Enter")
    page.wait_for_timeout(500)
    page.keyboard.press("Escape")
    close_sidebar(page)
    chat.send("the first one")
    chat.wait_for_answers(1)
    assert chat.last[0] == {"role": "system", "content": "Be brief."}
    assert chat.service.requests[-1]["temperature"] == 0.5

    open_sidebar(page)
    chat.button(words.conversation).click()
    with page.expect_download() as download:
        chat.button(words.export_markdown).click()
    assert "the first one" in download.value.path().read_text()
    with page.expect_download() as download:
        chat.button(words.export_json).click()
    assert "the first one" in json.dumps(json.loads(download.value.path().read_text()))
    page.get_by_label(words.name).fill("A name")
    page.get_by_label(words.name).press("Enter")
    page.get_by_test_id("stSidebar").get_by_role("button", name="A name").wait_for()
    page.keyboard.press("Escape")

    chat.button(texts.new_chat).click()
    chat.messages.first.wait_for(state="detached")
    open_sidebar(page)
    chat.button("A name").click()
    chat.messages.nth(1).wait_for()
    open_sidebar(page)
    chat.button(words.conversation).click()
    chat.button(words.delete).click()
    chat.messages.first.wait_for(state="detached")
    chat.button("A name").wait_for(state="detached")
    close_sidebar(page)
    assert_in_order(page, chat.view)


def test_files_that_cannot_be_sent(chat: Chat, tmp_path: Path) -> None:
    """Each is refused before anything is sent, in words; the text stays, and goes without the file by choice alone."""
    page, words = chat.page, chat.words
    for number, (name, data) in enumerate(REFUSED.items()):
        path = tmp_path / name
        path.write_bytes(data)
        chat.attach(path)
        chat.send_attached("what is it?")
        refusal = page.get_by_test_id("stAlert")
        refusal.get_by_text(words.not_sent, exact=True).wait_for()
        assert name in refusal.inner_text()
        chat.wait_for_input("what is it?")
        chat.input.press("Enter")
        chat.wait_for_input("what is it?")
        assert len(chat.service.requests) == number
        assert_in_order(page, chat.view, REFUSAL_WORDS | QUESTION_WORDS)
        chat.button(words.leave_out).click()
        refusal.wait_for(state="detached")
        chat.input.press("Enter")
        chat.wait_for_answers(number + 1)
        assert pictures_of(chat.last[-1]) == 0


def test_twenty_pictures(chat: Chat) -> None:
    """Those above the limit are refused in words that name it; the others go by choice."""
    page, words, limit = chat.page, chat.words, Limits().images
    chat.attach(*(file(f"{number}.png", picture("red")) for number in range(20)))
    chat.send_attached("what are these?")
    refusal = page.get_by_test_id("stAlert")
    refusal.get_by_text(words.not_sent, exact=True).wait_for()
    assert str(limit) in refusal.inner_text()
    assert chat.service.requests == []
    assert_in_order(page, chat.view, REFUSAL_WORDS | QUESTION_WORDS)
    chat.button(words.leave_out).click()
    refusal.wait_for(state="detached")
    chat.input.press("Enter")
    chat.wait_for_answers(1)
    assert pictures_of(chat.last[-1]) == limit
    assert_in_order(page, chat.view, REFUSAL_WORDS | QUESTION_WORDS)
