"""The page on a real systemd, and Debian's chromium to look at it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageDraw

from deploy.systemd.sandbox import Sandbox
from tests.box import CODE
from tests.operate_fixtures import KEY, write_operators
from tests.page_fixtures import FakeService, free_address
from ui.operate_texts import OPERATE_TEXTS, OperateTexts

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
TIMEOUT = 240.0
RELEASES = CODE / "service/demo_models/shapes/releases"  # 1.0.0 knows colours only; both reason before they answer


@contextmanager
def page_host() -> Iterator[Sandbox]:
    """A sandbox with the page and two releases, of which 1.0.0 is live; operating is on."""
    with Sandbox() as box:
        patience = box.host.units / "glm@.service.d/patience.conf"
        patience.parent.mkdir(exist_ok=True)
        patience.write_text("[Service]\nTimeoutStartSec=10min\n")  # chromium and two models share the cores
        run(box, "systemctl", "--user", "daemon-reload")
        for version in ("1.0.0", "1.1.0"):
            run(box, "glmctl", "release", "add", str(RELEASES / version), "-V", version)
        run(box, "glmctl", "deploy", "1.0.0", "--bake", "0s")
        write_operators(box.host)
        run(box, "systemctl", "--user", "start", "glm-operate.socket", "glm-ui.service")
        wait_for_page(box.addresses.ui, box.log)
        yield box


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """The host of a module."""
    with page_host() as box:
        yield box


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's chromium; raises ImportError without playwright and FileNotFoundError without chromium."""
    from playwright.sync_api import sync_playwright

    if not CHROMIUM.exists():
        raise FileNotFoundError(f"{CHROMIUM} is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def new_page(browser: Browser, **options: Any) -> Page:
    """A page in a context of its own; `options`: of the context."""
    chosen: dict[str, Any] = {"locale": "en-US", "viewport": {"width": 1100, "height": 800}, **options}
    page = browser.new_context(**chosen).new_page()
    page.set_default_timeout(TIMEOUT * 1000)
    return page


@pytest.fixture
def browser_page() -> Iterator[Page]:
    """A page of Debian's chromium."""
    with contextlib.ExitStack() as stack:
        try:
            browser = stack.enter_context(chromium())
        except ImportError:
            pytest.fail("the browser tests need playwright: pip install -e '.[dev]'")
        except FileNotFoundError as error:
            pytest.fail(str(error))
        yield new_page(browser)


def run(box: Sandbox, *argv: str) -> None:
    done = subprocess.run(argv, env=box.env, capture_output=True, text=True, timeout=2 * TIMEOUT)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}\n{box.log.read_text(errors='replace')[-4000:]}"


def glmctl_json(box: Sandbox, *words: str) -> Any:
    """What `glmctl … --json` prints."""
    return json.loads(subprocess.check_output(["glmctl", *words, "--json"], env=box.env))


def live_version(box: Sandbox) -> str:
    status = glmctl_json(box, "status")
    return str(status["slots"][status["live"]]["version"])


def other_version(box: Sandbox) -> str:
    """The release that is not live."""
    return "1.0.0" if live_version(box) == "1.1.0" else "1.1.0"


@contextmanager
def glmctl(box: Sandbox, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A glmctl that runs meanwhile, without its output; it ends with the test if that fails."""
    argv: Sequence[str] = ["glmctl", *words]
    with subprocess.Popen(argv, env=box.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            yield running
        except BaseException:
            running.terminate()  # it may wait at a canary step that nobody ends any more
            raise


@contextmanager
def fake_host(directory: Path) -> Iterator[tuple[FakeService, str]]:
    """A page in front of a fake service; yields the service and the page's address."""
    service, address, log = FakeService(), free_address(), directory / "page.log"
    argv = [sys.executable, "-m", "streamlit", "run", str(CODE / "ui/serve.py")]
    argv += ["--server.address", "127.0.0.1", "--server.port", address.rpartition(":")[2], "--server.headless", "true"]
    env = {**os.environ, "GLM_LISTEN": service.address, "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false"}
    env |= {"GLM_STATE": str(directory), "GLM_RUNTIME": str(directory)}
    with log.open("wb") as out, subprocess.Popen(argv, env=env, cwd=directory, stdout=out, stderr=out) as process:
        try:
            wait_for_page(address, log)
            yield service, address
        finally:
            process.terminate()
            service.close()


@pytest.fixture
def page_with_service(tmp_path: Path) -> Iterator[tuple[FakeService, str]]:
    """A page in front of a fake service."""
    with fake_host(tmp_path) as host:
        yield host


def wait_for_page(address: str, log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT
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


def restart_page(box: Sandbox, page: Page) -> None:
    """Restart the page's server; returns when the chat has connected again: what is attached before does not arrive."""
    with page.expect_websocket():
        run(box, "systemctl", "--user", "restart", "glm-ui.service")
    page.get_by_test_id("stChatInputTextArea").and_(page.locator(":enabled")).wait_for()


def ask(page: Page, text: str, colour: str) -> None:
    """Attach a picture, type a question and send it."""
    messages = page.get_by_test_id("stChatMessage")
    before = messages.count()
    page.locator("[data-testid=stChatInput] input[type=file]").set_input_files(
        {"name": f"{colour}.png", "mimeType": "image/png", "buffer": picture(colour)}
    )
    page.get_by_test_id("stChatInput").get_by_text(f"{colour}.png").wait_for()
    page.get_by_test_id("stChatInputTextArea").fill(text)
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:  # Enter has no effect during the upload
        page.get_by_test_id("stChatInputTextArea").press("Enter")
        for _ in range(30):
            if messages.count() > before:
                return
            page.wait_for_timeout(100)
    pytest.fail(f"{text!r} could not be sent")


def unlock(page: Page, words: OperateTexts = OPERATE_TEXTS["en"]) -> None:
    """Enter the key of alice; `words`: in the language of the page."""
    page.get_by_label(words.key).fill(KEY)
    page.get_by_label(words.key).press("Enter")
    page.get_by_text(words.unlocked.partition("**")[0]).wait_for()


def visit(page: Page, box: Sandbox, name: str) -> None:
    """Open a page by the navigation: its own address makes Streamlit look for files beside it first, which are 404."""
    page.goto(f"http://{box.addresses.ui}")
    page.get_by_test_id("stChatInputTextArea").wait_for()
    page.get_by_test_id("stSidebarNav").get_by_text(name).click()


def assert_fits_a_phone(page: Page) -> None:
    """Make the window as narrow as a phone's: nothing scrolls sideways."""
    page.set_viewport_size({"width": 390, "height": 844})
    await_fit(page, 390)


def await_fit(page: Page, width: int) -> None:
    """Wait until nothing scrolls sideways in the window, which has that width; raises TimeoutError.

    The page is drawn anew after a change of the width, so that the first look may be too early.
    """
    fits = "(width) => (({scrollWidth, clientWidth}) => scrollWidth <= clientWidth && clientWidth <= width)"
    page.wait_for_function(f"{fits}(document.querySelector('.stMain'))", arg=width, timeout=20_000)
