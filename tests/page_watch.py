"""What a rollout looks like, in the page and in `glmctl status --watch --json`, from its beginning to its end."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deploy.systemd.sandbox import Sandbox

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["assert_same_rollout", "look", "printed_status", "recorded_looks", "start_recording", "sums"]

# The running phases, all phases with their times, and the share of each slot, at this moment.
LOOK = """() => {
  const texts = (where) => [...document.querySelectorAll(where)].map((one) => one.innerText.trim());
  return {
    running: texts('.glm-phases .running span:nth-of-type(1)'),
    names: texts('.glm-phases li span:nth-of-type(1)'),
    seconds: texts('.glm-phases li span:nth-of-type(3)'),
    shares: texts('.glm-card dl div:first-child dd').map(parseFloat),
  };
}"""

Look = Mapping[str, Any]


def look(page: Page) -> dict[str, Any]:
    """What the rollout page shows at this moment."""
    found: dict[str, Any] = page.evaluate(LOOK)
    return found


def start_recording(page: Page) -> None:
    """Let the rollout page look at itself several times a second, while the test does something else."""
    page.evaluate(f"() => {{ window.looks = []; setInterval(() => window.looks.push(({LOOK})()), 150); }}")


def recorded_looks(page: Page) -> list[dict[str, Any]]:
    """What the page showed since `start_recording`."""
    found: list[dict[str, Any]] = page.evaluate("window.looks")
    return found


@contextmanager
def printed_status(box: Sandbox) -> Iterator[list[dict[str, Any]]]:
    """`glmctl status --watch --json` meanwhile; the list has all of its documents after the block."""
    printed: list[dict[str, Any]] = []
    watch = subprocess.Popen(["glmctl", "status", "--watch", "--json"], env=box.env, stdout=subprocess.PIPE, text=True)
    assert watch.stdout
    lines = watch.stdout
    reader = threading.Thread(target=lambda: printed.extend(json.loads(line) for line in lines))
    reader.start()
    try:
        yield printed
    finally:
        watch.terminate()
        reader.join()
        watch.wait()
        watch.stdout.close()


def assert_same_rollout(seen: Sequence[Look], printed: Sequence[Look], phases: Sequence[str]) -> None:
    """The page showed phases and shares that were printed, in their order, and these `phases` among them.

    A phase of some milliseconds is running in one of the two only, or in none.
    """
    whole = [list(map(_name, document["phases"])) for document in printed if document["phases"]][-1]
    of_page = (one["running"][0] for one in seen if one["running"])
    of_status = (_name(one) for document in printed for one in document["phases"] if one["state"] == "running")
    for names in (of_page, of_status):
        passed = [name for name, _ in itertools.groupby(names)]
        assert [name for name in whole if name in passed] == passed, f"{passed}, of {whole}: in their order, each once"
        assert set(phases) <= set(passed), passed
    shares = {tuple(slot["share"] for slot in document["slots"].values()) for document in printed}
    assert {tuple(one["shares"]) for one in seen if len(one["shares"]) == 2} <= shares


def _name(phase: Mapping[str, Any]) -> str:
    """A phase of a status, as the page names it."""
    return str(phase["phase"]) if phase["share"] is None else f"{phase['phase']} {phase['share']:g} %"


def sums(page: Page) -> list[str]:
    """The cells of the receipt's last line, which the page may draw anew at any moment."""
    line = page.get_by_role("cell", name="all", exact=True).first.locator("xpath=..")
    found: list[str] = line.evaluate("(line) => [...line.querySelectorAll('td')].map((one) => one.innerText)")
    return found
