"""The page in a real browser, during a cutover on a real systemd."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.display import duration
from deploy.systemd.sandbox import Sandbox
from service.contract import operations
from tests.browser_fixtures import (
    TIMEOUT,
    ask,
    assert_fits_a_phone,
    box,
    browser_page,
    glmctl_json,
    new_page,
    other_version,
    page_with_service,
    picture,
    restart_page,
    run,
    unlock,
    visit,
)
from tests.page_fixtures import FakeService
from tests.page_watch import assert_same_rollout, look, printed_status, recorded_looks, start_recording, sums

if TYPE_CHECKING:
    from playwright.sync_api import FilePayload, Locator, Page

__all__ = ["box", "browser_page", "page_with_service"]


def connected(address: str) -> set[str]:
    """The client addresses of the established TCP connections to `address`."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {local for _, local, remote, state, *_ in lines if remote.endswith(port) and state == "01"}


def test_cutover(box: Sandbox, browser_page: Page) -> None:
    """An open page shows the cutover and answers of both versions and keeps its connection; a restart keeps all."""
    page = browser_page
    errors: list[str] = []
    loads: list[str] = []
    hosts: set[str] = set()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("websocket", lambda socket: loads.append(socket.url))
    page.on("request", lambda request: hosts.add(urllib.parse.urlsplit(request.url).netloc))  # empty for data URLs
    page.on("domcontentloaded", lambda page: loads.append(page.url))  # not a mere change of the address

    page.goto(f"http://{box.addresses.ui}")
    sidebar = page.get_by_test_id("stSidebar")
    sidebar.get_by_role("heading", name="1.0.0").wait_for()
    initial = len(loads)

    ask(page, "What is in this picture?", "red")
    page.get_by_text("Answered by 1.0.0 in slot blue").wait_for()
    page.get_by_role("button", name="Stop").first.wait_for(state="detached")
    first = page.get_by_test_id("stChatMessage").nth(1).inner_text()
    assert "a red thing" in first
    assert "Thought for" in first

    connections = connected(box.addresses.listen)
    run(box, "glmctl", "deploy", "1.1.0", "--bake", "0s")
    sidebar.get_by_role("heading", name="1.1.0").wait_for()

    ask(page, "What is in this picture?", "green")
    page.get_by_text("Answered by 1.1.0 in slot green").wait_for()
    page.get_by_role("button", name="Stop").first.wait_for(state="detached")
    assert "a green circle" in page.get_by_test_id("stChatMessage").nth(3).inner_text()
    assert connections & connected(box.addresses.listen), "the page had to reconnect"
    assert first.startswith(page.get_by_test_id("stChatMessage").nth(1).inner_text()), "only its buttons may go"
    page.get_by_test_id("stChatMessage").locator("img").nth(1).wait_for()
    assert page.get_by_test_id("stAlert").count() == 0
    assert len(loads) == initial == 2, loads  # one page load, one connection
    assert errors == []
    assert hosts - {""} == {box.addresses.ui}, "the page must work without the internet"

    run(box, "systemctl", "--user", "restart", "glm-ui.service")
    page.reload()  # at once: the browser waits in the socket
    page.get_by_text("Answered by 1.1.0 in slot green").wait_for()
    assert first.startswith(page.get_by_test_id("stChatMessage").nth(1).inner_text()), "the page's restart lost it"
    page.get_by_test_id("stChatMessage").locator("img").nth(1).wait_for()


@pytest.mark.long
def test_rollout_page(box: Sandbox, browser_page: Page) -> None:
    """A deploy with a canary, watched to its end: phases, shares and counts are those of its record."""
    page = browser_page
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    visit(page, box, "Rollout")
    page.locator(".glm-card").nth(1).wait_for()
    page.get_by_test_id("stVegaLiteChart").first.wait_for()

    live = json.loads(subprocess.check_output(["glmctl", "status", "--json"], env=box.env))
    version = "1.0.0" if live["slots"][live["live"]]["version"] == "1.1.0" else "1.1.0"
    argv = ["glmctl", "deploy", version, "--canary", "10,50", "--step", "4s", "--bake", "4s"]
    seen: list[dict[str, Any]] = []
    with subprocess.Popen(argv, env=box.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as deploy:
        while deploy.poll() is None:
            seen.append(look(page))
            time.sleep(0.1)
    assert deploy.returncode == 0
    record = json.loads(subprocess.check_output(["glmctl", "history", "--json"], env=box.env))["rollouts"][-1]
    page.get_by_text("are accounted for.").wait_for()
    page.locator(".glm-table").get_by_text(record["id"]).wait_for()

    shares = iter(record["canary"])
    steps = [step["phase"] for step in record["steps"]]
    names = [f"{step} {next(shares):g} %" if step == "canary" else step for step in steps]
    assert look(page)["names"] == names
    running = [name for name, _ in itertools.groupby(one["running"][0] for one in seen if one["running"])]
    assert {"canary 10 %", "canary 50 %", "bake"} <= set(running)
    assert [name for name in names if name in running] == running, "phases are passed once, in their order"
    assert {sum(one["shares"]) for one in seen if one["shares"]} == {100}
    assert {min(one["shares"]) for one in seen if one["shares"]} >= set(record["canary"])
    times = [datetime.fromisoformat(at) for at in (*(step["at"] for step in record["steps"]), record["ended_at"])]
    took = [duration((after - before).total_seconds()) for before, after in itertools.pairwise(times)]
    assert look(page)["seconds"] == took

    assert sums(page)[2:4] == [str(record["receipt"][name]) for name in ("accepted", "completed")]
    assert page.get_by_test_id("stAlert").count() == 0
    assert errors == []
    assert_fits_a_phone(page)


def refused(box: Sandbox, key: str, verb: str, values: dict[str, str]) -> Any:
    """The answer of the server to an action that does not come from the page."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(operations.socket_path(box.host.runtime)))
        channel.sendall(operations.Request(key, verb, values).line())
        channel.shutdown(socket.SHUT_WR)
        with channel.makefile("rb") as answer:
            return json.loads(answer.readline())


def operate(page: Page, box: Sandbox, version: str) -> None:
    """Deploy with a canary, restart the page's server, and promote, all by the page; returns when it is done."""
    unlock(page)
    page.get_by_role("combobox", name="Version").first.click()
    page.get_by_role("option", name=version).click()
    page.get_by_role("textbox", name="Canary, in percent").fill("50")
    page.get_by_role("textbox", name="Duration of each canary step").fill("pause")
    page.get_by_role("textbox", name="Bake").fill("8s")  # of which the page beside it shows something, busy or not
    page.get_by_role("button", name="Dry run").click()
    page.get_by_text("found nothing against it").wait_for()
    page.get_by_role("button", name=f"Deploy {version}").click()
    page.get_by_role("dialog").get_by_role("button", name="Run").click()
    page.get_by_text("50 % of the requests to").wait_for()

    run(box, "systemctl", "--user", "restart", "glm-ui.service")
    with urllib.request.urlopen(f"http://{box.addresses.ui}/", timeout=TIMEOUT) as response:
        assert response.status == 200, "who connects during a restart waits"
    page.reload()
    page.get_by_text("50 % of the requests to").wait_for()
    assert page.get_by_role("button", name="Promote").count() == 0, "the key was kept in the session alone"
    unlock(page)
    page.get_by_role("button", name="Promote").click()
    page.get_by_role("dialog").get_by_role("button", name="Run").click()
    page.get_by_text("the canary step at 50 % has ended").wait_for()
    page.get_by_role("cell", name=f"--bake=8s -- {version}").locator("xpath=..").get_by_text("done").wait_for()


@pytest.mark.long
def test_operating(box: Sandbox, browser_page: Page) -> None:
    """A deploy with a canary from the browser, which a restart of the page does not end, promoted there to its end."""
    page = browser_page
    page.set_default_timeout(4 * TIMEOUT * 1000)  # it waits for several processes in turn
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    version = other_version(box)
    browser = page.context.browser
    assert browser
    beside = new_page(browser)  # the rollout page of somebody else, open all the time
    visit(beside, box, "Rollout")
    beside.locator(".glm-card").nth(1).wait_for()
    start_recording(beside)
    page.goto(f"http://{box.addresses.ui}")
    page.get_by_test_id("stSidebarNav").get_by_text("Operate").click()
    page.get_by_label("Operator's key").wait_for()
    assert page.get_by_role("button", name="Promote").count() == 0
    rollouts = glmctl_json(box, "history")["rollouts"]
    for key in ("", "a-wrong-key-of-someone"):  # whatever the browser shows, the server refuses
        assert refused(box, key, "deploy", {"version": version}) == {"error": "key"}
        assert refused(box, key, "rollback", {}) == {"error": "key"}
    assert glmctl_json(box, "history")["rollouts"] == rollouts
    with printed_status(box) as printed:
        operate(page, box, version)
        last = glmctl_json(box, "history")["rollouts"][-1]
        beside.locator(".glm-table").get_by_text(last["id"]).wait_for()
    assert_same_rollout(recorded_looks(beside), printed, ("canary 50 %", "bake"))
    assert beside.get_by_test_id("stAlert").count() == 0
    assert sums(beside)[2:4] == [str(last["receipt"][name]) for name in ("accepted", "completed")]

    assert (last["version"], last["outcome"], last["operator"]) == (version, "done", "alice")
    assert "begun by alice" in subprocess.check_output(["glmctl", "history", last["id"]], env=box.env, text=True)
    assert errors == []
    assert_fits_a_phone(page)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('[data-testid=stMain] :is(button, input)')]"
        ".filter(one => !(one.innerText || one.ariaLabel || one.labels?.length)).map(one => one.outerHTML)"
    )
    assert unnamed == []


def answers(page: Page) -> list[str]:
    return page.locator(".glm-answer").all_inner_texts()


@pytest.mark.long
def test_compare_page(box: Sandbox, browser_page: Page) -> None:
    """Refused in words while one slot answers; during a canary both answer the same question, and are voted on."""
    page = browser_page
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    visit(page, box, "Compare")
    page.get_by_text("Two versions answer while both slots run").wait_for()
    live = json.loads(subprocess.check_output(["glmctl", "status", "--json"], env=box.env))
    before = live["slots"][live["live"]]["version"]
    version = "1.0.0" if before == "1.1.0" else "1.1.0"
    argv = ["glmctl", "deploy", version, "--canary", "1", "--step", "pause"]
    with subprocess.Popen(argv, env=box.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as deploy:
        try:
            page.get_by_text("One question, answered at once by").wait_for()
            ask(page, "What is in this picture?", "green")
            page.get_by_role("radio", name=f"{before} is better").wait_for()
            page.locator(".glm-answer mark").nth(1).wait_for()
            assert {"a green thing" in one for one in answers(page)} == {True, False}
            assert {"a green circle" in one for one in answers(page)} == {True, False}
            assert set(page.locator(".glm-answer mark").all_inner_texts()) == {"thing", "circle"}
            page.get_by_role("radio", name=f"{version} is better").click()
            page.get_by_role("cell", name="1.0.0 / 1.1.0").wait_for()
            assert_fits_a_phone(page)
        finally:
            run(box, "glmctl", "abort")
    assert deploy.returncode != 0
    page.get_by_text(f"Only {before}").wait_for()
    page.get_by_test_id("stChatInputTextArea").and_(page.locator(":disabled")).wait_for()
    assert errors == []


@pytest.mark.long
def test_batches_page(box: Sandbox, browser_page: Page, tmp_path: Path) -> None:
    """A file with an error is refused with its line; a good one runs to its end, and its results are downloaded."""
    page = browser_page
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    visit(page, box, "Batches")
    body = {"messages": [{"role": "user", "content": "What can you do?"}], "max_tokens": 20}
    request = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body}
    good = tmp_path / "questions.jsonl"
    good.write_text(json.dumps(request) + "\n" + json.dumps({**request, "custom_id": "two"}) + "\n")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(request) + "\n" + json.dumps(request) + "\n")
    chooser = page.get_by_test_id("stFileUploader").locator("input[type=file]")
    chooser.set_input_files(bad)
    page.get_by_role("cell", name="2", exact=True).wait_for()
    assert page.get_by_role("button", name="Start the batch").count() == 0
    chooser.set_input_files(good)
    page.get_by_role("button", name="Start the batch").click()
    page.get_by_text("2 of 2 done").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download results").click()
    lines = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert {line["custom_id"] for line in lines} == {"one", "two"}
    assert {line["response"]["status_code"] for line in lines} == {200}
    assert_fits_a_phone(page)
    assert errors == []


@pytest.mark.long
def test_a_failed_upload(box: Sandbox, browser_page: Page) -> None:
    """A question whose picture the network or a restart of the page has lost is not sent without it."""
    from playwright.sync_api import expect

    page = browser_page
    page.goto(f"http://{box.addresses.ui}")
    question = page.get_by_test_id("stChatInputTextArea")
    attached = page.locator("[data-testid=stChatInput] input[type=file]")
    lost: FilePayload = {"name": "lost.png", "mimeType": "image/png", "buffer": picture("red")}

    def attempt(refusal: Locator) -> None:
        question.fill("What is in this picture?")
        # Enter has no effect during an upload; another one after it was sent would be another question.
        for _ in range(60):
            question.press("Enter")
            page.wait_for_timeout(1000)
            if refusal.count() or not question.input_value():
                break
        refusal.wait_for()

    page.route("**/upload_file/**", lambda route: route.abort())
    attached.set_input_files(lost)
    page.get_by_test_id("stChatInput").get_by_text("lost.png").wait_for()
    attempt(page.get_by_text("lost.png did not arrive"))
    assert page.get_by_test_id("stChatMessage").count() == 0
    expect(question).to_have_value("What is in this picture?", timeout=60_000)

    page.unroute("**/upload_file/**")
    page.reload()
    with page.expect_response("**/upload_file/**"):
        attached.set_input_files(lost)
    restart_page(box, page)
    page.get_by_test_id("stSidebar").get_by_text("Live now").wait_for()
    attempt(page.get_by_text("A file did not arrive"))
    assert page.get_by_test_id("stChatMessage").count() == 0


def test_reasoning(page_with_service: tuple[FakeService, str], browser_page: Page) -> None:
    """Reasoning is visible while received, collapsed by the answer, and stays expanded after a click."""
    service, address = page_with_service
    service.reasoning, service.answer = ["First a circle, ", "then its colour."], ["A red", " circle."]
    service.allow(1)
    page = browser_page
    page.goto(f"http://{address}")
    page.get_by_test_id("stChatInputTextArea").fill("What is it?")
    page.get_by_test_id("stChatInputTextArea").press("Enter")
    reasoning = page.get_by_test_id("stChatMessage").nth(1).get_by_test_id("stExpander")
    reasoning.get_by_text("Thinking …").wait_for()
    reasoning.get_by_text("First a circle,").wait_for()

    service.allow(3)
    page.get_by_text("A red ▍").wait_for()
    reasoning.get_by_text("Thought for").wait_for()
    reasoning.get_by_text("First a circle, then its colour.").wait_for(state="hidden")

    reasoning.get_by_text("Thought for").click()
    reasoning.get_by_text("First a circle, then its colour.").wait_for()
    service.allow()
    page.get_by_text("A red circle.").wait_for()
    page.get_by_role("button", name="Stop").first.wait_for(state="detached")
    assert reasoning.get_by_text("First a circle, then its colour.").is_visible(), "an expanded box must stay expanded"
