"""The page for operators, in front of `glmctl operate` with a fake glmctl."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from deploy.operate import request
from service.contract.operations import VERBS, newest
from tests.controller_fixtures import FakeController, status
from tests.operate_fixtures import KEY, OperateService, write_operators
from tests.page_fixtures import TIMEOUT, button_labels, free_address, wait_until
from ui.operate_texts import OPERATE_TEXTS

UI = Path(__file__).parent.parent / "ui"
ENGLISH, CHINESE = OPERATE_TEXTS["en"], OPERATE_TEXTS["zh"]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OperateService]:
    monkeypatch.setattr(request, "_DELAY", 0.0)
    glmctl = FakeController(tmp_path)
    glmctl.publish(status())
    monkeypatch.setenv("GLM_CONTROLLER", str(glmctl.path))
    monkeypatch.setenv("GLM_LISTEN", free_address())
    monkeypatch.syspath_prepend(str(UI.parent))
    with OperateService(tmp_path) as service:
        monkeypatch.setenv("GLM_RUNTIME", str(service.host.runtime))
        monkeypatch.setenv("GLM_STATE", str(service.host.state))
        yield service
    st.cache_resource.clear()
    st.cache_data.clear()


def open_page() -> AppTest:
    page = AppTest.from_file(UI / "operate_page.py", default_timeout=TIMEOUT).run()
    assert not page.exception
    return page


def press(page: AppTest, label: str) -> None:
    next(button for button in page.button if button.label == label).click().run()
    assert not page.exception


def unlock(page: AppTest, key: str = KEY) -> None:
    page.text_input[0].set_value(key)
    press(page, ENGLISH.unlock)


def shown(page: AppTest) -> str:
    parts = (*page.markdown, *page.caption, *page.info, *page.error, *page.success, *page.code)
    html = " ".join(re.sub(r"<[^>]*>", " ", element.proto.body) for element in page.get("html"))
    return "\n".join([html, *(str(part.value) for part in parts)])


def await_text(page: AppTest, text: str) -> None:
    def found() -> bool:
        page.run()
        assert not page.exception
        return text in shown(page)

    wait_until(found)


def actions(page: AppTest) -> set[str]:
    return {label for label in button_labels(page) if label not in {ENGLISH.unlock, CHINESE.unlock}}


def test_without_a_key_the_page_has_no_action(service: OperateService) -> None:
    """Nor with a wrong one, which the session does not keep; with the right one it has each of them."""
    page = open_page()
    assert actions(page) == set()
    unlock(page, "a-wrong-key-of-someone")
    assert ENGLISH.wrong_key in shown(page)
    assert actions(page) == set()
    unlock(page)
    assert "alice" in shown(page)
    titles = {ENGLISH.actions[verb][0] for verb in VERBS if verb != "deploy"}
    assert actions(page) == {ENGLISH.lock, ENGLISH.dry_run, *titles}
    press(page, ENGLISH.lock)
    assert actions(page) == set()
    assert newest(service.host.state, 9) == []


def test_wrong_keys_are_counted(service: OperateService, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some of them from one address not even the right one is tried; of another one it is."""
    monkeypatch.setattr(type(st.context), "ip_address", "192.0.2.1")
    page = open_page()
    for _ in range(5):
        unlock(page, "a-wrong-key-of-someone")
    unlock(page)
    assert ENGLISH.too_many in shown(page)
    assert actions(page) == set()
    monkeypatch.setattr(type(st.context), "ip_address", "192.0.2.2")
    unlock(page)
    assert actions(page)


def test_a_deploy_is_rehearsed_and_confirmed(service: OperateService) -> None:
    """The dry run comes first, the deploy is the same command without it, and runs once it is confirmed."""
    page = open_page()
    unlock(page)
    page.selectbox(key="deploy version").set_value("1.1.0")
    for label, value in ((ENGLISH.canary, "10, 50"), (ENGLISH.step, "pause"), (ENGLISH.bake, "5s")):
        next(field for field in page.text_input if field.label == label).set_value(value)
    press(page, ENGLISH.dry_run)
    words = ["deploy", "--strategy=auto", "--canary=10,50", "--step=pause", "--bake=5s", "--", "1.1.0"]
    rehearsal = [*words[:-2], "--dry-run", *words[-2:]]
    [first] = newest(service.host.state, 9)
    assert list(first.arguments) == rehearsal
    assert "Deploy 1.1.0" not in button_labels(page)
    service.finish(0)
    await_text(page, ENGLISH.possible)
    press(page, "Deploy 1.1.0")
    assert len(newest(service.host.state, 9)) == 1
    assert f"glmctl {' '.join(words)}" in shown(page)
    press(page, ENGLISH.run)
    last, _ = newest(service.host.state, 9)
    assert (list(last.arguments), last.operator) == (words, "alice")
    await_text(page, f"alice began: {' '.join(words)}\nended")
    assert "Deploy 1.1.0" not in button_labels(page)


def test_a_deploy_that_the_dry_run_refuses(service: OperateService) -> None:
    """Is not offered; what cannot be a command is refused before anything runs."""
    service.finish(3)
    page = open_page()
    unlock(page)
    press(page, ENGLISH.dry_run)
    assert "deploy needs a version" in shown(page)
    page.selectbox(key="deploy version").set_value("1.1.0")
    press(page, ENGLISH.dry_run)
    await_text(page, ENGLISH.impossible)
    assert "Deploy 1.1.0" not in button_labels(page)


def test_an_action_is_confirmed(service: OperateService) -> None:
    """Or cancelled; its output is found again by another session, with the name of the operator."""
    service.finish(0)
    page = open_page()
    unlock(page)
    title = ENGLISH.actions["promote"][0]
    press(page, title)
    press(page, ENGLISH.cancel)
    assert newest(service.host.state, 9) == []
    press(page, title)
    press(page, ENGLISH.run)
    assert [one.arguments for one in newest(service.host.state, 9)] == [("promote",)]
    other = open_page()
    await_text(other, "alice began: promote\nended")
    assert actions(other) == set()
    assert "glmctl promote" in shown(other)


def test_a_key_that_is_withdrawn(service: OperateService) -> None:
    """Locks the page at the next action, which does not run."""
    page = open_page()
    unlock(page)
    press(page, ENGLISH.actions["abort"][0])
    write_operators(service.host, "bob another-key-of-bob\n")
    press(page, ENGLISH.run)
    assert ENGLISH.wrong_key in shown(page)
    page.run()
    assert actions(page) == set()
    assert newest(service.host.state, 9) == []


def test_where_operating_is_off_there_is_no_page(service: OperateService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The navigation has it only beside the socket, in the language of the other pages."""
    page = AppTest.from_file(UI / "app.py", default_timeout=TIMEOUT).run()
    page.segmented_control[0].set_value("zh").run()
    page.switch_page("operate_page.py").run()
    assert CHINESE.locked in shown(page)
    monkeypatch.setenv("GLM_RUNTIME", str(service.host.root))
    assert ENGLISH.off in shown(open_page())


def test_both_languages_have_every_action() -> None:
    """Each verb has a title and an explanation."""
    for texts in OPERATE_TEXTS.values():
        assert set(texts.actions) == set(VERBS)
