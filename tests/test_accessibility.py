"""axe-core finds nothing serious on any page: light and dark, wide and on a phone, in both languages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import pytest

from deploy.systemd.sandbox import Sandbox
from tests.browser_fixtures import box, browser_page
from tests.clients.packages import ENVIRONMENTS
from tests.page_tour import PAGES, WIDE, begin_tour, canary, choose_language, visit_page

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["box", "browser_page"]

pytestmark = pytest.mark.long

AXE = ENVIRONMENTS / "node/node_modules/axe-core/axe.min.js"
LANGUAGES = {"en": "English", "zh": "中文"}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
WIDTHS = (1280, 390)


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


def views(page: Page) -> Iterator[str]:
    """Bring each page into each language, scheme and width, and yield its name."""
    for language, name in LANGUAGES.items():
        page.set_viewport_size(WIDE)
        choose_language(page, name)
        for one in PAGES:
            page.set_viewport_size(WIDE)
            visit_page(page, one)
            for scheme in SCHEMES:
                page.emulate_media(color_scheme=scheme)
                for width in WIDTHS:
                    page.set_viewport_size({"width": width, "height": 844})
                    yield f"{one} {language} {scheme} {width}"


def test_every_page(box: Sandbox, browser_page: Page) -> None:
    """With an answer, a canary, a comparison, a batch, and unlocked actions on them."""
    if not AXE.exists():
        pytest.skip(f"{AXE} is missing: make clients installs it by npm")
    page = browser_page
    with canary(box, "25"):
        begin_tour(page, box)
        page.evaluate(AXE.read_text())
        problems = {view: found(page) for view in views(page)}
    assert len(problems) == len(LANGUAGES) * len(PAGES) * len(SCHEMES) * len(WIDTHS)
    assert {view: one for view, one in problems.items() if one} == {}
