"""Packages that speak OpenAI's API work unchanged, each with its defaults, against the whole server and a real model.

The model is the one of the demo that knows colours and shapes, so that answers can be checked. Its chat template is
changed so that it does not reason unless asked to: of tools it has learnt nothing, and what it thinks then has no end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.box import Box, empty_host
from tests.clients.packages import ENVIRONMENTS, HERE, PACKAGES, Package

pytestmark = [pytest.mark.model, pytest.mark.long]

RELEASE = HERE.parent.parent / "service/demo_models/shapes/releases/1.1.0"
UNLESS_OFF, IF_ON = (
    "enable_thinking is defined and not enable_thinking",
    "not (enable_thinking is defined and enable_thinking)",
)
Answer = dict[str, Any]
Run = Callable[[Package], dict[str, Answer]]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A host on which a model is live that answers without reasoning."""
    checkpoint = tmp_path_factory.mktemp("clients") / "checkpoint"
    shutil.copytree(RELEASE, checkpoint)
    template = checkpoint / "chat_template.jinja"
    assert UNLESS_OFF in template.read_text()
    template.write_text(template.read_text().replace(UNLESS_OFF, IF_ON))
    with empty_host("model") as box:
        box.stock({"1.1.0": checkpoint})
        box.glmctl("deploy", "1.1.0")
        yield box


@pytest.fixture(scope="module")
def run(host: Box, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs all cells of a package, once, in one process; returns what its program printed, by cell."""

    @cache
    def found(package: Package) -> dict[str, Answer]:
        if package.environment == "node":
            shutil.copy(HERE / "programs" / package.program, ENVIRONMENTS / "node")  # where imports are looked up
        done = subprocess.run(
            [*package.command, *package.cells],
            env=environment(host, tmp_path_factory.mktemp("home")),
            capture_output=True,
            text=True,
            timeout=600,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"cell"')]
        assert len(lines) == len(package.cells), done.stdout + done.stderr
        return {line["cell"]: line for line in lines}

    return found


def environment(host: Box, home: Path) -> dict[str, str]:
    """The variables of a client: none of the machine's, and a home directory of its own."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "OPENAI_BASE_URL": f"http://{host.listen}/v1",
        "OPENAI_API_KEY": "any",
        "PICTURE": str(RELEASE / "red-circle.png"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it is read from GitHub
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def cells() -> Iterator[Any]:
    """Every package with every cell that it offers; skipped where the package is not installed."""
    for package in PACKAGES:
        reason = f"{ENVIRONMENTS / package.environment} is missing: `make clients` makes it, by pip and npm"
        missing = pytest.mark.skipif(package.version is None, reason=reason)
        for cell in package.cells:
            yield pytest.param(package, cell, id=f"{package}-{cell}", marks=missing)


@pytest.mark.parametrize(("package", "cell"), [*cells()])
def test_package(package: Package, cell: str, run: Run, record_property: Callable[[str, object], None]) -> None:
    """Everything that a package offers comes back as it should, typed as the schema says."""
    record_property("client", ((str(package), package.version), cell))
    line = run(package)[cell]
    assert "error" not in line, line["error"]
    CHECKS.get(cell, check_call)(line["answer"])


def check_text(answer: Answer) -> None:
    assert answer["text"] == "Hello! Show me a picture of a shape."


def check_stream(answer: Answer) -> None:
    assert answer["text"] == "One, two, three."
    assert answer["pieces"] > 3


def check_picture(answer: Answer) -> None:
    assert answer["text"] == "a red circle"


def check_tools(answer: Answer) -> None:
    """A model that has not learnt to call says something, before and after the result of a call."""
    assert answer.keys() == {"before", "after"}
    assert all(isinstance(text, str) for text in answer.values())


def check_call(answer: Answer) -> None:
    assert answer["call"]["name"] == "paint"
    check_shape(answer["call"]["arguments"])


def check_schema(answer: Answer) -> None:
    check_shape(answer["document"])


def check_schema_with_tools(answer: Answer) -> None:
    """A call or a document, as the model chooses."""
    (check_call if "call" in answer else check_schema)(answer)


def check_responses(answer: Answer) -> None:
    check_text(answer)
    (check_call if "call" in answer else check_schema)(answer)


def check_shape(found: Any) -> None:
    assert found.keys() == {"colour", "size", "filled"}
    assert found["colour"] in ("red", "blue")
    assert found["size"] in (1, 2, 3)
    assert type(found["size"]) is int
    assert type(found["filled"]) is bool


CHECKS: dict[str, Callable[[Answer], None]] = {
    "text": check_text,
    "stream": check_stream,
    "picture": check_picture,
    "tools": check_tools,
    "schema": check_schema,
    "schema_with_tools": check_schema_with_tools,
    "responses": check_responses,
}
