"""The page in a browser through what a host goes through: a swap, a killed worker, its own restart, a rollback."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.systemd.sandbox import Sandbox
from tests.box import Box
from tests.browser_fixtures import (
    ask,
    box,
    browser_page,
    glmctl,
    glmctl_json,
    live_version,
    other_version,
    restart_page,
    run,
    visit,
)
from tests.page_tour import open_page
from tests.page_views import View, live_version_in_sight, open_sidebar, open_view
from tests.page_watch import assert_same_rollout, look, printed_status, sums
from tests.test_faulty_releases import make_faulty, traffic

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["box", "browser_page"]

pytestmark = pytest.mark.long

QUESTION = "What is in this picture?"
OPENED = {
    "compare": "[data-testid=stAlert]",
    "rollout": ".glm-card",
    "batches": "[data-testid=stFileUploader]",
    "operate": "[data-testid=stForm]",
}
"""What shows that a page is open, before anything was done on it."""


VIEWS: dict[str, dict[str, View]] = {
    "wide": {
        "chat": View("en", "light", 1280),
        "rollout": View("zh", "dark", 390),
        "compare": View("zh", "light", 1280),
        "batches": View("en", "dark", 390),
        "operate": View("zh", "dark", 1280),
    },
    "phone": {
        "chat": View("zh", "dark", 390),
        "rollout": View("en", "light", 1280),
        "compare": View("en", "light", 390),
        "batches": View("zh", "dark", 1280),
        "operate": View("en", "dark", 390),
    },
}
"""In which view each page is open; the second time in another one."""

# Warnings and errors that a page shows at any moment, also those that are gone when the test looks.
RECORD = """() => {
  window.complaints = [];
  const where = '[data-testid=stAlertContentWarning], [data-testid=stAlertContentError], [data-testid=stException]';
  new MutationObserver(() => {
    for (const one of document.querySelectorAll(where))
      if (!window.complaints.includes(one.innerText)) window.complaints.push(one.innerText);
  }).observe(document.body, {subtree: true, childList: true});
}"""


class OpenPages:
    """All pages of a host, each open in a view of its own, while something happens to the host."""

    def __init__(self, browser: Browser, box: Sandbox, views: Mapping[str, View]) -> None:
        self.errors: list[str] = []
        self.views = views
        self.pages: dict[str, Page] = {}
        for name, view in views.items():
            page = self.pages[name] = open_view(browser, view)
            page.set_default_timeout(300_000)  # models are loaded while a question waits
            page.on("pageerror", lambda error: self.errors.append(str(error)))
            page.goto(f"http://{box.addresses.ui}")
            page.get_by_test_id("stChatInputTextArea").wait_for()
            if name != "chat":
                open_sidebar(page)
                open_page(page, name)
                page.locator(OPENED[name]).first.wait_for()
            page.evaluate(RECORD)
        self.chat = self.pages["chat"]
        self.words = views["chat"].texts
        self.asked = 0

    def ask(self, colour: str) -> str:
        """Ask in the chat, and return the version that has answered."""
        ask(self.chat, QUESTION, colour)
        self.asked += 1
        message = self.chat.get_by_test_id("stChatMessage").nth(2 * self.asked - 1)
        prefix, _, suffix = self.words.answered_by.partition("{version}")
        origin = message.get_by_text(suffix.partition("{slot}")[0].strip() or prefix.partition("{slot}")[0].strip())
        origin.wait_for()
        self.chat.get_by_role("button", name=self.words.stop).first.wait_for(state="detached")
        assert self.chat.get_by_test_id("stChatMessage").count() == 2 * self.asked
        found = re.search(r"\d+\.\d+\.\d+", origin.inner_text())
        assert found
        return found[0]

    def changes(self) -> list[tuple[str, str]]:
        """The changes of version that the sidebar of the chat lists, newest first."""
        text = self.chat.get_by_test_id("stSidebar").text_content() or ""
        return re.findall(r"(\d+\.\d+\.\d+) → (\d+\.\d+\.\d+)", text)

    def wait_for_changes(self, *expected: tuple[str, str]) -> None:
        """Wait until the sidebar, which is drawn after the live version is in sight, lists these changes."""
        deadline = time.monotonic() + 10
        while self.changes() != [*expected] and time.monotonic() < deadline:
            self.chat.wait_for_timeout(100)
        assert self.changes() == [*expected]

    def check(self, live: str) -> None:
        """The live version is in sight, and no page complains."""
        for name, page in self.pages.items():
            if name == "chat" or self.views[name].is_phone:
                live_version_in_sight(page, live)
            assert page.evaluate("window.complaints") == [], name
        assert self.errors == []


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_every_page_goes_on(box: Sandbox, browser_page: Page, views: dict[str, View]) -> None:
    """A canary of half the requests, cutover, swap, kill -9 and a restart of the page: every answer, no error.

    The versions that the page tells are those of the cutover and of the swap, and nothing of the canary.
    """
    browser = browser_page.context.browser
    assert browser
    before, after = live_version(box), other_version(box)
    pages = OpenPages(browser, box, views)
    assert pages.ask("red") == before

    with glmctl(box, "deploy", after, "--canary", "50", "--step", "pause", "--bake", "2s") as deploy:
        wait_for_share(box, 50)
        answered: set[str] = set()
        while len(answered) < 2 and pages.asked < 20:
            answered.add(pages.ask("green"))
        assert answered == {before, after}
        assert pages.changes() == []
        pages.check(before)
        run(box, "glmctl", "promote")
    assert deploy.returncode == 0
    pages.check(after)
    pages.wait_for_changes((before, after))

    with glmctl(box, "deploy", before, "--strategy", "swap", "--bake", "0s") as deploy:
        while glmctl_json(box, "status")["live"] and deploy.poll() is None:
            time.sleep(0.2)  # until nothing serves
        assert pages.ask("blue") == before
    assert deploy.returncode == 0
    pages.check(before)
    pages.wait_for_changes((after, before), (before, after))

    [worker] = Box(box).generation(glmctl_json(box, "status")["live"]).workers
    os.kill(worker.pid, signal.SIGKILL)
    assert pages.ask("yellow") == before
    pages.check(before)
    assert pages.changes() == [(after, before), (before, after)]

    restart_page(box, pages.chat)
    assert pages.ask("red") == before
    pages.check(before)
    assert pages.changes() in ([], [(after, before), (before, after)]), "the list is that of a session"
    for page in pages.pages.values():
        page.context.close()


def wait_for_share(box: Sandbox, share: float) -> None:
    """Wait until a slot that is not live has this share of the requests, in percent."""
    while True:
        status = glmctl_json(box, "status")
        if any(slot["share"] == share for name, slot in status["slots"].items() if name != status["live"]):
            return
        time.sleep(0.2)


def test_a_rollback_by_analysis(box: Sandbox, browser_page: Page, tmp_path: Path) -> None:
    """Watched to its end: phases and shares are those that `status --watch --json` prints, the verdict its record's."""
    page, machine, flag = browser_page, Box(box), tmp_path / "begin"
    page.set_default_timeout(240_000)
    if glmctl_json(box, "status")["live"] == "green":  # the fault is one of green
        run(box, "glmctl", "deploy", other_version(box), "--bake", "0s")
    make_faulty(machine, tmp_path, flag, "fails always")
    before, version = live_version(box), other_version(box)
    visit(page, box, "Rollout")
    page.locator(".glm-card").nth(1).wait_for()

    seen: list[dict[str, Any]] = []
    with (
        printed_status(box) as printed,
        traffic(machine),
        glmctl(box, "deploy", version, "--canary", "50", "--step", "120s") as deploy,
    ):
        while deploy.poll() is None:
            seen.append(look(page))
            if "canary 50 %" in seen[-1]["running"]:
                flag.touch()
            time.sleep(0.2)
    assert deploy.returncode == 5
    record = glmctl_json(box, "history")["rollouts"][-1]
    assert record["outcome"] == "rolled back"

    page.locator(".glm-table").get_by_text(record["id"]).wait_for()
    page.get_by_role("region", name="Receipt").first.wait_for()
    assert_same_rollout(seen, printed, ["canary 50 %"])
    main = page.get_by_test_id("stMain").inner_text()
    assert record["reason"] in main
    assert "rolled back" in main
    verdict = record["analysis"][-1]
    assert verdict["outcome"] == "worse"
    assert verdict["reason"] in main
    figures = page.get_by_role("region", name="Verdict").first.get_by_role("row").all_inner_texts()
    assert len(figures) == 1 + sum(len(one["metrics"]) for one in record["analysis"])
    receipt = record["receipt"]
    assert sums(page)[2:5] == [str(receipt[name]) for name in ("accepted", "completed", "failed")]
    assert live_version(box) == before
    assert page.get_by_test_id("stAlert").count() == 0
