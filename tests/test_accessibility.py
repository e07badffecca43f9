"""Each page in use, in each view: axe-core finds nothing serious, nothing scrolls sideways, Chinese is Chinese."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from deploy.systemd.sandbox import Sandbox
from tests.browser_fixtures import box, browser_page
from tests.clients.packages import ENVIRONMENTS
from tests.page_tour import PAGES, WIDE, begin_tour, canary, choose_language, visit_page
from tests.page_views import VIEWS, View, assert_in_order, live_version_in_sight, open_view

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["box", "browser_page"]

pytestmark = pytest.mark.long

AXE = ENVIRONMENTS / "node/node_modules/axe-core/axe.min.js"
NAMES = {"en": "English", "zh": "中文"}
SHOWN = {
    "chat": "What is in this picture It it is has This circle red thing",
    "compare": "What is in this picture It it is has This circle green thing",
    "rollout": "overlap alice root cpu MiB ms ttft",
    "batches": "custom_id id question questions jsonl messages role user content method POST url chat completions body "
    "model kB",
    "operate": "alice root auto overlap weights swap",
}
"""What the pages have in Chinese too: what was asked and answered, names of options and fields, units."""


def found(page: Page) -> list[tuple[str, str, str]]:
    """Rule, element and explanation of everything serious or critical."""
    page.wait_for_timeout(300)
    violations: list[dict[str, Any]] = page.evaluate("async () => (await axe.run()).violations")
    return [
        (one["id"], node["html"][:200], node["failureSummary"][:300])
        for one in violations
        if one["impact"] in {"serious", "critical"}
        for node in one["nodes"]
    ]


def views(page: Page) -> Iterator[tuple[str, View]]:
    """Bring each page into each language, scheme and width; yield its name and view."""
    for language, name in NAMES.items():
        page.set_viewport_size(WIDE)
        choose_language(page, name)
        for one in PAGES:
            page.set_viewport_size(WIDE)
            visit_page(page, one)
            for view in (view for view in VIEWS if view.language == language):
                page.emulate_media(color_scheme=view.scheme)
                page.set_viewport_size({"width": view.width, "height": 844})
                yield one, view


def test_every_page(box: Sandbox, browser_page: Page) -> None:
    """With an answer, a canary, a comparison, a batch, and unlocked actions on them."""
    if not AXE.exists():
        pytest.skip(f"{AXE} is missing: make clients installs it by npm")
    page = browser_page
    page.set_viewport_size(WIDE)
    problems: dict[str, Any] = {}
    with canary(box, "25"):
        begin_tour(page, box)
        page.evaluate(AXE.read_text())
        for one, view in views(page):
            problems[f"{one} {view}"] = found(page)
            assert_in_order(page, view, re.findall(r"\w+", SHOWN[one]))
            if view.is_phone:
                live_version_in_sight(page, "1.0.0")
    assert len(problems) == len(PAGES) * len(VIEWS)
    assert {view: one for view, one in problems.items() if one} == {}


def test_in_chinese_on_a_phone(box: Sandbox, browser_page: Page) -> None:
    """Chat, comparison and vote, batch, and an operator's key are used there as in a wide window."""
    browser = browser_page.context.browser
    assert browser
    view = View("zh", "dark", 390)
    page = open_view(browser, view)
    with canary(box, "25"):
        begin_tour(page, box, view.language)
        for one in PAGES:
            visit_page(page, one)
            assert_in_order(page, view, re.findall(r"\w+", SHOWN[one]))
            live_version_in_sight(page, "1.0.0")
