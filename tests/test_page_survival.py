"""The page in a browser through what a host goes through: a swap, a killed worker, its own restart, a rollback."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import threading
import time
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
    look,
    other_version,
    run,
    visit,
)
from tests.test_faulty_releases import make_faulty, traffic

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["box", "browser_page"]

pytestmark = pytest.mark.long

QUESTION = "What is in this picture?"


def changes(page: Page) -> list[str]:
    """The changes of version that the sidebar lists."""
    lines = page.get_by_test_id("stSidebar").inner_text().splitlines()
    return [line.partition(" ")[2].strip() for line in lines if "→" in line]


def answered(page: Page, number: int) -> str:
    """The answer to the question of this number, from 0, once it has ended."""
    page.get_by_test_id("stChatMessage").nth(2 * number + 1).get_by_text("Answered by").wait_for()
    page.get_by_role("button", name="Stop").wait_for(state="detached")
    assert page.get_by_test_id("stAlert").count() == 0
    return page.get_by_test_id("stChatMessage").nth(2 * number + 1).inner_text()


def test_a_chat_goes_on(box: Sandbox, browser_page: Page) -> None:
    """A swap, kill -9 of the live worker, and a restart of the page: answers, no error, one change of version."""
    page = browser_page
    page.set_default_timeout(240_000)  # a model is loaded while a question waits
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"http://{box.addresses.ui}")
    ask(page, QUESTION, "red")
    before, after = live_version(box), other_version(box)
    assert f"Answered by {before}" in answered(page, 0)

    with glmctl(box, "deploy", after, "--strategy", "swap", "--bake", "0s") as deploy:
        while glmctl_json(box, "status")["live"] and deploy.poll() is None:
            time.sleep(0.2)  # until nothing serves
        ask(page, QUESTION, "green")
        assert f"Answered by {after}" in answered(page, 1)
    assert deploy.returncode == 0
    page.get_by_test_id("stSidebar").get_by_role("heading", name=after).wait_for()
    assert changes(page) == [f"{before} → {after}"]

    machine = Box(box)
    [slot] = [glmctl_json(box, "status")["live"]]
    [worker] = machine.generation(slot).workers
    os.kill(worker.pid, signal.SIGKILL)
    ask(page, QUESTION, "blue")
    assert f"Answered by {after}" in answered(page, 2)
    assert changes(page) == [f"{before} → {after}"]

    run(box, "systemctl", "--user", "restart", "glm-ui.service")
    page.get_by_test_id("stSidebar").get_by_role("heading", name=after).wait_for()
    ask(page, QUESTION, "yellow")
    assert f"Answered by {after}" in answered(page, 3)
    assert changes(page) in ([], [f"{before} → {after}"]), "the list is that of a session"
    assert page.get_by_test_id("stChatMessage").count() == 8
    assert errors == []


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

    printed: list[dict[str, Any]] = []
    seen: list[dict[str, Any]] = []
    watch = subprocess.Popen(["glmctl", "status", "--watch", "--json"], env=box.env, stdout=subprocess.PIPE, text=True)
    assert watch.stdout
    lines = watch.stdout
    reader = threading.Thread(target=lambda: printed.extend(json.loads(line) for line in lines))
    reader.start()
    try:
        with traffic(machine), glmctl(box, "deploy", version, "--canary", "50", "--step", "120s") as deploy:
            while deploy.poll() is None:
                seen.append(look(page))
                if "canary 50 %" in seen[-1]["running"]:
                    flag.touch()
                time.sleep(0.2)
    finally:
        watch.terminate()
        reader.join()
        watch.stdout.close()
    assert deploy.returncode == 5
    record = glmctl_json(box, "history")["rollouts"][-1]
    assert record["outcome"] == "rolled back"

    page.locator(".glm-table").get_by_text(record["id"]).wait_for()
    page.get_by_role("region", name="Receipt").first.wait_for()
    shown = [name for name, _ in itertools.groupby(one["running"][0] for one in seen if one["running"])]
    assert set(shown) <= {name for document in printed for name in running(document)}
    assert "canary 50 %" in shown
    shares = {tuple(slot["share"] for slot in document["slots"].values()) for document in printed}
    assert {tuple(one["shares"]) for one in seen if len(one["shares"]) == 2} <= shares
    main = page.get_by_test_id("stMain").inner_text()
    assert record["reason"] in main
    assert "rolled back" in main
    verdict = record["analysis"][-1]
    assert verdict["outcome"] == "worse"
    assert verdict["reason"] in main
    figures = page.get_by_role("region", name="Verdict").first.get_by_role("row").all_inner_texts()
    assert len(figures) == 1 + sum(len(one["metrics"]) for one in record["analysis"])
    receipt = record["receipt"]
    sums = page.get_by_role("cell", name="all", exact=True).first.locator("xpath=..").get_by_role("cell")
    assert sums.all_inner_texts()[2:5] == [str(receipt[name]) for name in ("accepted", "completed", "failed")]
    assert live_version(box) == before
    assert page.get_by_test_id("stAlert").count() == 0


def running(document: dict[str, Any]) -> list[str]:
    """The running phase of a status, as the page names it."""
    return [
        one["phase"] if one["share"] is None else f"{one['phase']} {one['share']:g} %"
        for one in document["phases"]
        if one["state"] == "running"
    ]
