"""Files that do not arrive at the page: a question is never sent without them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from streamlit.runtime.uploaded_file_manager import UploadedFileRec
from streamlit.testing.v1 import AppTest

from tests.page_fixtures import PAGE, FakeService, open_page, picture
from ui.chat.received import MAX_FILES, RecordedFiles
from ui.chat.texts import CHAT_TEXTS

WORDS = CHAT_TEXTS["English"]
SESSION = "test session id"  # AppTest's


class Uploads(RuleBasedStateMachine):
    """The records beside a plain reading: missing is what was announced or used, and never arrived; it is told once."""

    def __init__(self) -> None:
        super().__init__()
        self.files = RecordedFiles("/upload")
        self.missing: dict[str, str] = {}
        self.known: list[str] = ["of an earlier process"]
        self.here: set[str] = set()
        self.settled: set[str] = set()

    @rule(name=st.sampled_from(["a.png", "b.png"]))
    def announce(self, name: str) -> None:
        [address] = self.files.get_upload_urls("one", [name])
        self.missing[address.file_id] = name
        self.known.append(address.file_id)

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        identifier = data.draw(st.sampled_from(self.known))
        self.files.add_file("one", UploadedFileRec(identifier, "x", "image/png", b"x"))
        self.missing.pop(identifier, None)
        self.here.add(identifier)
        self.settled.add(identifier)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        identifier = data.draw(st.sampled_from(self.known))
        self.files.remove_file("one", identifier)
        self.missing.pop(identifier, None)
        self.here.discard(identifier)
        self.settled.add(identifier)

    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        identifier = data.draw(st.sampled_from(self.known))
        found = self.files.get_files("one", [identifier])
        assert bool(found) == (identifier in self.here)
        if not found and identifier not in self.settled:
            self.missing.setdefault(identifier, "")

    @rule()
    def take(self) -> None:
        assert sorted(self.files.take_missing("one")) == sorted(self.missing.values())
        assert self.files.take_missing("two") == []
        self.settled |= set(self.missing)
        self.missing.clear()

    @rule()
    def end(self) -> None:
        self.files.remove_session_files("one")
        for state in (self.missing, self.here, self.settled):
            state.clear()


TestUploads = Uploads.TestCase
TestUploads.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)


def test_records_are_bounded() -> None:
    """A browser that asks for addresses without end takes no memory without end."""
    files = RecordedFiles("/upload")
    files.get_upload_urls("one", [str(number) for number in range(MAX_FILES + 5)])
    names = files.take_missing("one")
    assert names == [str(number) for number in range(5, MAX_FILES + 5)]
    assert len(files._seen["one"]) == MAX_FILES


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> RecordedFiles:
    files = RecordedFiles("/upload")
    monkeypatch.setattr("streamlit.testing.v1.local_script_runner.MemoryUploadedFileManager", lambda _: files)
    return files


@pytest.fixture
def service() -> Iterator[FakeService]:
    service = FakeService()
    service.candidate = "1.1.0", "green"
    yield service
    service.close()


@pytest.fixture(params=["page.py", "compare_page.py"])
def page(
    request: pytest.FixtureRequest, service: FakeService, files: RecordedFiles, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AppTest]:
    with open_page(service, monkeypatch, PAGE.with_name(request.param)) as page:
        yield page


def test_a_failed_upload_holds_the_question_back(page: AppTest, service: FakeService, files: RecordedFiles) -> None:
    """The file that did not arrive is named, the question and the others are kept, and go with the next attempt."""
    files.get_upload_urls(SESSION, ["lost.png"])
    page.chat_input[0].upload("good.png", picture(), "image/png")
    page.chat_input[0].set_value("what is it?").run()
    assert service.requests == []
    assert "lost.png" in page.warning[0].value.replace("\\", "")
    assert page.chat_input[0].proto.value == "what is it?"
    page.chat_input[0].upload("again.png", picture(colour="blue"), "image/png")
    page.chat_input[0].set_value("what is it?").run()
    assert not page.warning
    content = service.requests[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]


def test_only_a_failed_upload(page: AppTest, service: FakeService, files: RecordedFiles) -> None:
    """An attempt with nothing but that file says so too, and the user may go on without it."""
    files.get_upload_urls(SESSION, ["lost.png"])
    page.chat_input[0].set_value(" ").run()
    assert service.requests == []
    assert page.warning
    next(button for button in page.button if button.label == WORDS.leave_out).click().run()
    assert not page.warning
    page.chat_input[0].set_value("what is it?").run()
    assert service.requests[0]["messages"][-1]["content"] == "what is it?"


def test_the_server_records_uploads() -> None:
    """Streamlit's application gets the recording store."""
    from streamlit.runtime import Runtime

    from ui.serve import app

    runtime = app._create_runtime()
    assert isinstance(runtime.uploaded_file_mgr, RecordedFiles)
    Runtime._instance = None
