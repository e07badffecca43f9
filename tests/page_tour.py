"""Each page in use: an answer, a canary under way, a comparison, a batch that has ended, an operator's dry run.

The screenshots and the test of accessibility look at the same states.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from deploy.systemd.sandbox import Sandbox
from tests.browser_fixtures import ask, glmctl, other_version, run, unlock
from tests.page_views import close_sidebar, open_sidebar
from ui.batches.texts import BATCH_TEXTS
from ui.chat.texts import CHAT_TEXTS
from ui.compare.texts import COMPARE_TEXTS
from ui.operate_texts import OPERATE_TEXTS
from ui.texts import LANGUAGES

if TYPE_CHECKING:
    from playwright.sync_api import Page, ViewportSize

__all__ = ["PAGES", "begin_tour", "canary", "choose_language", "load", "visit_page"]

DRAWN = {
    "chat": "[data-testid=stChatMessage] [data-testid=stExpander]",
    "compare": ".glm-answer mark",
    "rollout": ".glm-card",
    "batches": "[data-testid=stFileUploader]",
    "operate": "[data-testid=stForm]",
}
"""What no other page has, once a page is in use."""
PAGES = tuple(DRAWN)
QUESTION = "What is in this picture?"
WIDE: ViewportSize = {"width": 1280, "height": 900}


@contextmanager
def load(box: Sandbox) -> Iterator[None]:
    """A light load of mixed clients, for the plots."""
    argv = [sys.executable, "-m", "deploy.loadtest", box.addresses.listen, "--seconds", "0", "--think", "0.5"]
    with subprocess.Popen(
        [*argv, "--scale", "0.1"], env={**os.environ}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as clients:
        try:
            yield
        finally:
            clients.send_signal(signal.SIGTERM)


@contextmanager
def canary(box: Sandbox, share: str) -> Iterator[None]:
    """A canary of the other release, which is aborted at the end."""
    with glmctl(box, "deploy", other_version(box), "--canary", share, "--step", "pause"):
        try:
            yield
        finally:
            run(box, "glmctl", "abort")


def open_page(page: Page, name: str) -> None:
    """Go to a page by the navigation, in the same session; `name`: of its address."""
    open_sidebar(page)
    path = "/" if name == "chat" else f"/{name}"
    page.locator(f"[data-testid=stSidebarNavLink][href$='{path}']").click()
    close_sidebar(page)


def visit_page(page: Page, name: str) -> None:
    """Go to a page that is in use, and wait until it is drawn."""
    open_page(page, name)
    page.locator(DRAWN[name]).first.wait_for()
    settle(page)


def choose_language(page: Page, name: str) -> None:
    """Choose the language by its name in the sidebar."""
    open_sidebar(page)
    page.get_by_test_id("stSidebar").get_by_text(name, exact=True).click()
    page.get_by_test_id("stSidebar").locator("[aria-checked=true], [aria-pressed=true]").get_by_text(name).wait_for()
    settle(page)


def settle(page: Page) -> None:
    """Wait until the run of the page's script has ended."""
    from playwright.sync_api import TimeoutError as PlaywrightTimeout

    with suppress(PlaywrightTimeout):  # fragments that run every second may keep it running
        page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for(timeout=10_000)
    page.wait_for_timeout(500)


def begin_tour(page: Page, box: Sandbox, language: str = "en") -> None:
    """Bring every page into use; a canary must be under way. `language`: that of the browser."""
    chat, compare = LANGUAGES[language], COMPARE_TEXTS[language]
    batches, operate = BATCH_TEXTS[language], OPERATE_TEXTS[language]
    page.goto(f"http://{box.addresses.ui}")
    page.get_by_test_id("stChatInputTextArea").wait_for()
    open_page(page, "rollout")  # its plots begin with the first look at it
    page.locator(DRAWN["rollout"]).first.wait_for()

    open_page(page, "chat")
    page.locator("[data-testid=stChatInput]").wait_for()
    ask(page, QUESTION, "red")
    page.get_by_role("button", name=CHAT_TEXTS[chat.name].regenerate).wait_for()
    page.get_by_role("button", name=chat.stop, exact=True).first.wait_for(state="detached")

    open_page(page, "compare")
    page.get_by_text(compare.both.partition("**")[0]).wait_for()
    ask(page, QUESTION, "green")
    page.get_by_role("radio", name=compare.better.format(version="1.1.0")).click()
    page.get_by_role("cell", name="1.0.0 / 1.1.0").wait_for()

    open_page(page, "batches")
    chooser = page.get_by_test_id("stFileUploader").locator("input[type=file]")
    chooser.set_input_files({"name": "questions.jsonl", "mimeType": "application/jsonl", "buffer": questions(3)})
    page.get_by_role("button", name=batches.start).click()
    page.get_by_text(batches.progress.format(done=3, total=3)).wait_for()

    open_page(page, "operate")
    unlock(page, operate)
    page.get_by_role("button", name=operate.actions["release verify"][0]).wait_for()


def questions(count: int) -> bytes:
    """The lines of a batch."""
    body = {"messages": [{"role": "user", "content": "What can you do?"}], "max_tokens": 20}
    request = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = [json.dumps({"custom_id": f"question-{number}", **request}) for number in range(count)]
    return "".join(f"{line}\n" for line in lines).encode()
