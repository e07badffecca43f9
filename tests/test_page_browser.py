"""The page in a real browser, on a real systemd, through a real cutover."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw

from deploy.systemd.sandbox import Sandbox
from tests.box import CODE
from tests.test_page import Stage, free_address

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
PATIENCE = 60.0
RELEASES = CODE / "service/demo_models/shapes/releases"  # 1.0.0 knows colours alone; both think before they answer


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """1.0.0 is live and the page is up; 1.1.0 is there to be deployed."""
    with Sandbox() as box:
        for version in ("1.0.0", "1.1.0"):
            do(box, "glmctl", "release", "add", str(RELEASES / version), "-V", version)
        do(box, "glmctl", "deploy", "1.0.0", "--bake", "0s")
        do(box, "systemctl", "--user", "start", "glm-ui.service")
        wait_for_page(box.addresses.ui, box.log)
        yield box


@pytest.fixture
def staged(tmp_path: Path) -> Iterator[tuple[Stage, str]]:
    """A page in front of a service that waits where it is told, and the page's address."""
    stage, address, log = Stage(), free_address(), tmp_path / "page.log"
    argv = [sys.executable, "-m", "streamlit", "run", str(CODE / "ui/page.py")]
    argv += ["--server.address", "127.0.0.1", "--server.port", address.rpartition(":")[2], "--server.headless", "true"]
    env = {**os.environ, "GLM_LISTEN": stage.address, "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false"}
    with log.open("wb") as out, subprocess.Popen(argv, env=env, cwd=tmp_path, stdout=out, stderr=out) as process:
        try:
            wait_for_page(address, log)
            yield stage, address
        finally:
            process.terminate()
            stage.close()


@pytest.fixture
def browser_page() -> Iterator[Page]:
    """A tab of Debian's chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail(
            "the browser tests need playwright (pip install -e '.[dev]') and chromium: apt-get install chromium"
        )
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_context(locale="en-US", viewport={"width": 1100, "height": 800}).new_page()
        page.set_default_timeout(PATIENCE * 1000)
        yield page
        browser.close()


def do(box: Sandbox, *argv: str) -> None:
    done = subprocess.run(argv, env=box.env, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}\n{box.log.read_text(errors='replace')[-4000:]}"


def wait_for_page(address: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/_stcore/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
            time.sleep(0.1)


def picture(colour: str) -> bytes:
    image = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(image).ellipse((90, 50, 230, 190), fill=colour)
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def ask(page: Page, text: str, colour: str) -> None:
    """Attach a picture, type a question and send it, as a person does."""
    from playwright.sync_api import TimeoutError as PlaywrightTimeout

    page.locator("[data-testid=stChatInput] input[type=file]").set_input_files(
        {"name": f"{colour}.png", "mimeType": "image/png", "buffer": picture(colour)}
    )
    page.get_by_test_id("stChatInput").get_by_text(f"{colour}.png").wait_for()
    page.get_by_test_id("stChatInputTextArea").fill(text)
    for _ in range(20):  # Enter does nothing while the picture is still on its way up
        page.get_by_test_id("stChatInputTextArea").press("Enter")
        with contextlib.suppress(PlaywrightTimeout):
            page.get_by_test_id("stChatMessage").get_by_text(text).wait_for(timeout=3000)
            return
    pytest.fail(f"{text!r} could not be sent")


def connected(address: str) -> set[str]:
    """The client ends of the TCP connections that stand to `address`."""
    there = f":{int(address.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {here for _, here, remote, state, *_ in lines if remote.endswith(there) and state == "01"}


def test_the_page_stays_usable_through_a_cutover(box: Sandbox, browser_page: Page) -> None:
    """A page that stays open shows the cutover, answers from both versions, and loses no connection and no history."""
    page = browser_page
    complaints: list[str] = []
    loads: list[str] = []
    asked: set[str] = set()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("websocket", lambda socket: loads.append(socket.url))
    page.on("request", lambda request: asked.add(urllib.parse.urlsplit(request.url).netloc))  # none: data URLs
    page.on("framenavigated", lambda frame: loads.append(frame.url) if frame == page.main_frame else None)

    page.goto(f"http://{box.addresses.ui}")
    sidebar = page.get_by_test_id("stSidebar")
    sidebar.get_by_role("heading", name="1.0.0").wait_for()
    before = len(loads)

    ask(page, "What is in this picture?", "red")
    page.get_by_text("Answered by 1.0.0 in slot blue").wait_for()
    page.get_by_role("button", name="Stop").wait_for(state="detached")
    first = page.get_by_test_id("stChatMessage").nth(1).inner_text()
    assert "a red thing" in first
    assert "Thought for" in first

    connections = connected(box.addresses.listen)
    do(box, "glmctl", "deploy", "1.1.0", "--bake", "0s")
    sidebar.get_by_role("heading", name="1.1.0").wait_for()

    ask(page, "What is in this picture?", "green")
    page.get_by_text("Answered by 1.1.0 in slot green").wait_for()
    page.get_by_role("button", name="Stop").wait_for(state="detached")
    assert "a green circle" in page.get_by_test_id("stChatMessage").nth(3).inner_text()
    assert connections & connected(box.addresses.listen), "the page had to connect anew"
    assert page.get_by_test_id("stChatMessage").nth(1).inner_text() == first
    assert page.get_by_test_id("stChatMessage").locator("img").count() == 2
    assert page.get_by_test_id("stAlert").count() == 0
    assert len(loads) == before == 2, loads  # one page load, one connection
    assert complaints == []
    assert asked - {""} == {box.addresses.ui}, "the page must work on a host without the internet"


def test_a_thought_is_seen_and_then_folded(staged: tuple[Stage, str], browser_page: Page) -> None:
    """A person reads the thought while it comes; the answer folds it, and it opens again and stays so at a click."""
    stage, address = staged
    stage.thoughts, stage.words = ["First a circle, ", "then its colour."], ["A red", " circle."]
    stage.allow(1)
    page = browser_page
    page.goto(f"http://{address}")
    page.get_by_test_id("stChatInputTextArea").fill("What is it?")
    page.get_by_test_id("stChatInputTextArea").press("Enter")
    thought = page.get_by_test_id("stChatMessage").nth(1).get_by_test_id("stExpander")
    thought.get_by_text("Thinking …").wait_for()
    thought.get_by_text("First a circle,").wait_for()

    stage.allow(3)
    page.get_by_text("A red ▍").wait_for()
    thought.get_by_text("Thought for").wait_for()
    thought.get_by_text("First a circle, then its colour.").wait_for(state="hidden")

    thought.get_by_text("Thought for").click()
    thought.get_by_text("First a circle, then its colour.").wait_for()
    stage.allow()
    page.get_by_text("A red circle.").wait_for()
    page.get_by_role("button", name="Stop").wait_for(state="detached")
    assert thought.get_by_text("First a circle, then its colour.").is_visible(), "what was unfolded must stay so"
