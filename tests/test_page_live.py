"""The line with the live version, which phones show in the header of every page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from streamlit.testing.v1 import AppTest

from tests.page_fixtures import PAGE, FakeService, open_page
from ui.client import LiveSlot
from ui.live import live_line
from ui.texts import LANGUAGES


@pytest.fixture
def service() -> Iterator[FakeService]:
    service = FakeService()
    yield service
    service.close()


def shown(page: AppTest) -> list[str]:
    return [element.proto.body for element in page.get("html") if 'class="glm-live"' in element.proto.body]


def test_every_page_has_the_line(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the language of the page; a canary does not change it."""
    with open_page(service, monkeypatch, PAGE.with_name("app.py")) as page:
        assert shown(page) == [live_line(LiveSlot("1.0.0", "blue"), LANGUAGES["en"])]
        service.candidate = "1.1.0", "green"
        page.segmented_control[0].set_value("zh").run()
        for name in ("compare", "batches"):
            page.switch_page(f"{name}_page.py").run()
            assert not page.exception
            assert shown(page) == [live_line(LiveSlot("1.0.0", "blue"), LANGUAGES["zh"])]


def test_an_unknown_version_is_said_in_words() -> None:
    """And what the service tells is shown as text."""
    for texts in LANGUAGES.values():
        assert texts.no_response in live_line(None, texts)
        assert "<b>&lt;i&gt;</b>" in live_line(LiveSlot("<i>", "<blue>"), texts)
