"""A newcomer's way on a bare host, in the words of README and tutorial: clone, demo, test, rollouts, install, serve.

What is typed stands in the pages; `SUBSTITUTIONS` is all that is changed in it. The tests are one life, in this order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.console import Line, Typed, lines
from tests.document_hosts import CHECKPOINTS, REPOSITORY, USER, DocumentHost, document_host

README, TUTORIAL = lines("README.md"), lines("docs/tutorial.md")
SUBSTITUTIONS = {
    r"\bREPOSITORY\b": REPOSITORY,
    r"^make demo$": "make demo ARGS=--once",  # else it waits for a key
    r"^make test$": "make test ARGS=tests/test_receipt.py",  # ruff and mypy; all of pytest takes half an hour
    r"\./my-checkpoint|\./GLM-4\.6V-Flash-2": f"{CHECKPOINTS}/1.1.0",
    r"\./GLM-4\.6V-Flash": f"{CHECKPOINTS}/1.0.0",
    r"--seconds 60": "--seconds 20",
    r"(--step|--bake) \d+[sm]": r"\1 3s",
}
SERVES = "127.0.0.1:8000"
"""In the sandbox another address, which `status` says: the tutorial tells to put it in place of this one."""
SANDBOX_SERVES = '$(glmctl status --json | grep --only-matching --perl-regexp \'"listen": "\\K[^"]+\')'
ENTERED = TUTORIAL.index(Line(". .venv/bin/activate", is_root=False))


def typed(line: Line) -> str:
    """What is typed for a line."""
    text = line.text
    for pattern, replacement in SUBSTITUTIONS.items():
        text = re.sub(pattern, replacement, text)
    return text


def output(found: list[Typed], words: str) -> str:
    """What the first line with `words` printed."""
    return next(one.output for one in found if words in one.text)


TRIES = [*TUTORIAL[:ENTERED], *(line for line in README if line.text.startswith("make ") and line not in TUTORIAL)]
BY_HAND = [*TUTORIAL[ENTERED:], *(line for line in README if not line.is_root and line.text.startswith("glmctl "))]
INSTALLS = [line for line in README if line.is_root and not line.text.startswith("glmctl ")]
SERVING = [line for line in README if line.is_root and line.text.startswith("glmctl ")]


def test_every_line_is_typed() -> None:
    """Those of README, and those of the tutorial; each substitution is of use, and each verb is among them."""
    all_typed = {*TRIES, *BY_HAND, *INSTALLS, *SERVING}
    assert {*README, *TUTORIAL} == all_typed
    assert [one for one in SUBSTITUTIONS if not any(re.search(one, line.text) for line in all_typed)] == []
    assert any(SERVES in line.text for line in BY_HAND)
    texts = [line.text for line in (*TRIES, *INSTALLS, *SERVING)]
    order = ["git clone", "make demo", "make test", "glmctl install", "glmctl release add", "glmctl deploy", "--canary"]
    places = [next(number for number, text in enumerate(texts) if words in text) for words in order]
    assert places == sorted(places)
    assert texts[-1] == "glmctl rollback"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Iterator[DocumentHost]:
    """A bare host with the two checkpoints of one's own."""
    with document_host(tmp_path_factory.mktemp("newcomer"), checkpoints) as host:
        yield host


@pytest.fixture(scope="module")
def tried(host: DocumentHost) -> list[Typed]:
    """What a user without rights saw who cloned the code and tried it."""
    return host.type(*map(typed, TRIES), user=USER, seconds=1800)


@pytest.fixture(scope="module")
def installed(host: DocumentHost, tried: list[Typed]) -> DocumentHost:
    """The host after root's lines, typed in that user's checkout, in which the demo has made an environment."""
    assert tried
    host.type(*map(typed, INSTALLS), directory=f"/home/{USER}/glm-handover", seconds=1200)
    return host


@pytest.mark.long
@pytest.mark.model
def test_demo_and_tests_run_from_a_clone(tried: list[Typed]) -> None:
    """The demo says what pip downloads and answers as the tutorial says, nothing is lost, and the tests pass."""
    demo = output(tried, "make demo")
    assert "pip is about to download torch" in demo
    assert 0 < demo.find("1.0.0: a red thing\n") < demo.find("1.1.0: a red circle\n"), demo
    assert "Nothing was lost" in demo
    tests = output(tried, "make test")
    assert re.search(r"\d+ passed", tests), tests
    assert "failed" not in tests


@pytest.mark.long
@pytest.mark.model
def test_rollouts_by_hand_are_as_the_tutorial_tells(host: DocumentHost, tried: list[Typed]) -> None:
    """In the sandbox of a user: canary, rollback, a checkpoint of one's own, and the deploy that README shows."""
    assert tried
    words = [typed(line).replace(SERVES, SANDBOX_SERVES) for line in BY_HAND]
    found = host.type(*words, user=USER, directory="glm-handover", seconds=1200)
    assert '"1.0.0"' in output(found, "/version")
    assert output(found, "curl -si").startswith("HTTP/1.1 200")
    assert "x-model-version: 1.0.0" in output(found, "curl -si").lower()
    canary = output(found, "--canary")
    assert "1.1.0 is live in green (before: 1.0.0)" in canary
    assert "Nothing was lost" in canary
    assert "1.0.0 is live" in output(found, "glmctl rollback")
    assert "BAD" not in output(found, "glmctl doctor")
    assert "2.0.0 is live" in found[-2].output
    assert "1.1.0 is live" in found[-1].output


@pytest.mark.long
@pytest.mark.model
def test_a_host_serves_a_checkpoint_of_ones_own(installed: DocumentHost) -> None:
    """README's lines of root: install, release, deploy, canary, rollback; clients see the version after each."""
    seen: list[str] = []
    for line in SERVING:
        [one] = installed.type(typed(line), seconds=300)
        if "release" not in line.text:
            assert "accounted for" in one.output or not seen, one.output  # of glmctl's own requests; others send none
            seen.append(installed.sh("curl -sS 127.0.0.1:8000/version | tr , '\\n' | grep '\"version\"'"))
    assert [re.findall(r"\d\.\d\.\d", one) for one in seen] == [["1.0.0"], ["1.1.0"], ["1.0.0"]]
    head = installed.sh("""curl -sSi 127.0.0.1:8000/v1/chat/completions --json '{"messages": [{"role": "user",
        "content": "Hello"}]}'""")
    assert "x-model-version: 1.0.0" in head.lower()
    assert head.startswith("HTTP/1.1 200")
