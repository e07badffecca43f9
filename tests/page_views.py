"""The eight views of the page: two languages, light and dark, a wide window and a phone."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tests.browser_fixtures import await_fit, new_page
from ui.texts import LANGUAGES, Texts

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["VIEWS", "View", "assert_in_order", "close_sidebar", "live_version_in_sight", "open_sidebar", "open_view"]

PHONE = 768  # pixels; of a narrower window the sidebar covers all
ENGLISH_WORDS = {"English", "GLM", "token", "blue", "green", "glmctl", "Markdown", "JSON", "Cookie", "API"}
"""Words with Latin letters that the Chinese page has too."""

# Icons are drawn by the names of their glyphs, and commands are the same in every language.
VISIBLE_TEXT = """() => {
  const hidden = '[data-testid=stIconMaterial], [role=img], code, pre, svg, style, textarea, [aria-hidden=true]';
  const walker = document.createTreeWalker(document.querySelector('.stMain'), NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    const size = getComputedStyle(one).fontSize;
    if (!one.closest(hidden) && one.checkVisibility() && size !== '0px') found.push(walker.currentNode.data);
  }
  return found.join('\\n');
}"""


@dataclass(frozen=True)
class View:
    """One way to look at the page."""

    language: str
    scheme: Literal["light", "dark"]
    width: int

    @property
    def texts(self) -> Texts:
        """The texts of every page."""
        return LANGUAGES[self.language]

    @property
    def is_phone(self) -> bool:
        """Whether the sidebar is closed until it is asked for."""
        return self.width < PHONE

    def __str__(self) -> str:
        return f"{self.language}-{self.scheme}-{self.width}"


VIEWS = tuple(itertools.starmap(View, itertools.product(("en", "zh"), ("light", "dark"), (1280, 390))))


def open_view(browser: Browser, view: View) -> Page:
    """Return a page in a context of its own, whose browser prefers this view."""
    locale = {"en": "en-US", "zh": "zh-CN"}[view.language]
    viewport = {"width": view.width, "height": 844}
    return new_page(browser, locale=locale, color_scheme=view.scheme, viewport=viewport, timezone_id="UTC")


def open_sidebar(page: Page) -> None:
    """Open the sidebar where it is closed."""
    from playwright.sync_api import TimeoutError as NotYet

    button, opened = page.get_by_test_id("stExpandSidebarButton"), page.locator(".stSidebar[data-collapsed=false]")
    for _ in range(60):  # a window that has just become wider or narrower opens or closes it by itself
        page.wait_for_timeout(200)
        if opened.count() and not button.is_visible():
            return
        with contextlib.suppress(NotYet):
            button.click(timeout=1000)
    raise AssertionError("the sidebar does not open")


def close_sidebar(page: Page) -> None:
    """Close the sidebar where it covers the page: on a phone."""
    size = page.viewport_size
    if size and size["width"] < PHONE and page.locator(".stSidebar[data-collapsed=false]").count():
        page.mouse.move(0, 0)
        page.locator("[data-testid=stSidebarCollapseButton] button").click(force=True)  # it appears below the mouse
        page.locator(".stSidebar[data-collapsed=true]").wait_for(state="attached")


def live_version_in_sight(page: Page, version: str) -> None:
    """Wait until the window shows the live version without a click or scrolling."""
    where = ".glm-live b, .stSidebar[data-collapsed=false] h3"
    page.wait_for_function(
        """([where, version]) => [...document.querySelectorAll(where)].some((one) => {
          const box = one.getBoundingClientRect();
          const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
          return one.innerText.includes(version) && box.width > 0 && box.y >= 0 && box.bottom <= innerHeight
            && getComputedStyle(one).visibility === 'visible' && top !== null;
        })""",
        arg=[where, version],
    )


def assert_in_order(page: Page, view: View, words: Collection[str] = ()) -> None:
    """No failure is shown, nothing scrolls sideways, the scheme is that of the view, and Chinese is Chinese.

    `words`: with Latin letters, which the page may have here beside those that it always may.
    """
    assert page.get_by_test_id("stException").count() == 0
    await_fit(page, view.width)
    brightness = page.evaluate("+getComputedStyle(document.querySelector('.stApp')).backgroundColor.match(/\\d+/)[0]")
    assert (brightness < 128) == (view.scheme == "dark")
    if view.language == "zh":
        for _ in range(100):  # waited for: the page is drawn anew after a change of the language
            shown = re.sub(r"batch_[0-9a-f]+", "", page.evaluate(VISIBLE_TEXT))
            if not (unknown := set(re.findall(r"[A-Za-z]{2,}", shown)) - ENGLISH_WORDS - set(words)):
                return
            page.wait_for_timeout(200)
        raise AssertionError(unknown)
