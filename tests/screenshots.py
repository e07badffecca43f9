"""`make screenshots`: pictures of the page around a deploy, and what the deploy printed, for the documents.

Writes docs/images/chat.png, docs/images/rollout.png (1280 pixels wide, light) and docs/images/deploy.txt. Needs
playwright
and Debian's chromium. The host is a sandbox with the two models of the demo.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from deploy.systemd.sandbox import Sandbox
from tests.box import CODE
from tests.test_page_browser import ARGUMENTS, CHROMIUM, RELEASES, ask, wait_for_page

if TYPE_CHECKING:
    from playwright.sync_api import Page, ViewportSize

IMAGES = CODE / "docs/images"
QUESTION = "What is in this picture?"
TIMEOUT = 600.0  # seconds, for a machine that does other work, too
VIEWPORT: ViewportSize = {"width": 1280, "height": 900}
WHOLE: ViewportSize = {"width": 1280, "height": 1700}  # of the rollout page: its main part scrolls by itself


def run(box: Sandbox, *argv: str) -> None:
    """Run a command in the sandbox; raises CalledProcessError."""
    subprocess.run(argv, env=box.env, check=True, timeout=TIMEOUT)


def chat(page: Page, version: str, colour: str) -> None:
    """Ask about a drawn picture, and wait for the answer of that version."""
    ask(page, QUESTION, colour)
    page.get_by_text(f"Answered by {version}").last.wait_for()
    page.get_by_role("button", name="Stop").wait_for(state="detached")


def phases(printed: str) -> str:
    """Return what was printed without the lines that a terminal replaces by the next one: the progress of a phase."""
    return "".join(line for line in printed.splitlines(keepends=True) if not re.match(r" {21}\S", line))


def take(page: Page, box: Sandbox, scratch: Path) -> None:
    """Ask 1.0.0, deploy 1.1.0 under load, ask again, and take the pictures."""
    page.goto(f"http://{box.addresses.ui}")
    page.get_by_test_id("stSidebar").get_by_role("heading", name="1.0.0").wait_for()
    chat(page, "1.0.0", "red")
    report = scratch / "load.json"
    argv = [
        sys.executable,
        "-m",
        "deploy.loadtest",
        box.addresses.listen,
        "--seconds",
        "0",
        "--think",
        "0.5",
        "--scale",
        "0.25",
    ]
    with (scratch / "load.log").open("wb") as out:
        load = subprocess.Popen([*argv, "--json", str(report)], env=box.env, stdout=out, stderr=out)
    try:
        time.sleep(2)
        deploy = ["glmctl", "deploy", "1.1.0", "--canary", "10,50", "--step", "10s", "--bake", "10s"]
        # in a pipe, so that the receipt has its wide form
        printed = subprocess.run(deploy, env=box.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if printed.returncode != 0:
            sys.exit(f"{printed.stdout}{box.log.read_text(errors='replace')[-4000:]}")
        time.sleep(1)
        page.get_by_test_id("stSidebarNav").get_by_text("Rollout").click()
        page.get_by_text("are accounted for.").wait_for()
        page.get_by_test_id("stVegaLiteChart").first.wait_for()
        page.set_viewport_size(WHOLE)
        page.wait_for_timeout(3000)  # the charts are drawn piece by piece
        page.screenshot(path=IMAGES / "rollout.png")
        page.set_viewport_size(VIEWPORT)
    finally:
        load.send_signal(signal.SIGTERM)
        load.wait()
    lost = json.loads(report.read_text())["lost"]
    (IMAGES / "deploy.txt").write_text(f"$ {' '.join(deploy)}\n{phases(printed.stdout)}")
    page.get_by_test_id("stSidebarNav").get_by_text("Chat").click()
    chat(page, "1.1.0", "red")
    page.wait_for_timeout(1000)
    page.screenshot(path=IMAGES / "chat.png")
    print(f"wrote docs/images; the clients lost {lost} requests")


def main() -> None:
    """Run all of it."""
    from playwright.sync_api import sync_playwright

    if not subprocess.run(["fc-list", ":lang=zh"], capture_output=True, check=True).stdout:
        sys.exit("no font has Chinese characters, which the page shows: apt-get install fonts-wqy-microhei")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with Sandbox() as box, TemporaryDirectory() as scratch, sync_playwright() as playwright:
        for version in ("1.0.0", "1.1.0"):
            run(box, "glmctl", "release", "add", str(RELEASES / version), "-V", version)
        run(box, "glmctl", "deploy", "1.0.0", "--bake", "0s")
        run(box, "systemctl", "--user", "start", "glm-ui.service")
        wait_for_page(box.addresses.ui, box.log)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_context(locale="en-US", viewport=VIEWPORT, color_scheme="light").new_page()
        page.set_default_timeout(TIMEOUT * 1000)
        take(page, box, Path(scratch))
        browser.close()


if __name__ == "__main__":
    main()
