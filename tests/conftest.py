"""Fixtures: checkpoints of the true architecture, and hosts of our own to serve them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.systemd.sandbox import Sandbox
from service.demo_models import tiny
from tests.box import Box, live_host

# A run in the background of a shell ignores Ctrl-C, and so would every command that a test means to interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tiny checkpoints that answer differently, by the version they become."""
    made = {}
    for version, seed in (("1.0.0", 1), ("1.1.0", 2)):
        made[version] = tmp_path_factory.mktemp("checkpoints") / version
        tiny.make(made[version], seed=seed, dtype="float32")  # in bf16 an answer would depend on the batch
    return made


@pytest.fixture(scope="module")
def stocked_live(checkpoints: dict[str, Path]) -> Iterator[Box]:
    """A host for a whole module whose tests change nothing: 1.0.0 is live, 1.1.0 was added."""
    with live_host(checkpoints) as box:
        yield box


@pytest.fixture
def empty_box() -> Iterator[Box]:
    """A host on which nothing was deployed yet."""
    with Sandbox() as sandbox:
        box = Box(sandbox)
        box.configure(threads=1)
        yield box


@pytest.fixture
def stocked_box(empty_box: Box, checkpoints: dict[str, Path]) -> Box:
    """A host that has both releases, and nothing live."""
    for version, path in checkpoints.items():
        empty_box.glmctl("release", "add", str(path), "--version", version)
    return empty_box


@pytest.fixture
def box(stocked_box: Box) -> Box:
    """A host on which 1.0.0 is live, in blue."""
    stocked_box.glmctl("deploy", "1.0.0")
    return stocked_box


@pytest.fixture
def add_release(checkpoints: dict[str, Path], tmp_path: Path) -> Callable[..., None]:
    """Adds a release like 1.1.0, after something was done to its checkpoint."""
    import shutil

    def add(box: Box, version: str, *words: str, change: Callable[[Path], None] = lambda _: None) -> None:
        copy = tmp_path / version
        shutil.copytree(checkpoints["1.1.0"], copy)
        change(copy)
        box.glmctl("release", "add", str(copy), "--version", version, *words)

    return add


CRASHES = pytest.StashKey[dict[tuple[str, str, str], str]]()


@pytest.fixture(scope="session")
def crashes(pytestconfig: pytest.Config) -> dict[tuple[str, str, str], str]:
    """What the crash matrix finds, by strategy, victim and phase."""
    return pytestconfig.stash.setdefault(CRASHES, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the crash matrix: which version served in the end, and how many requests went with the killed process."""
    crashes = config.stash.get(CRASHES, {})
    for strategy in dict.fromkeys(cell[0] for cell in crashes):
        cells = {cell[1:]: found for cell, found in crashes.items() if cell[0] == strategy}
        phases = list(dict.fromkeys(phase for _, phase in cells))
        terminalreporter.section(f"kill -9 in a rollout by {strategy}: who serves in the end, -N: lost with the killed")
        victims = dict.fromkeys(victim for victim, _ in cells)
        rows = [[victim, *(cells.get((victim, phase), "") for phase in phases)] for victim in victims]
        for row in [["", *phases], *rows]:
            terminalreporter.write_line(
                "".join(f"{word:<18}" if not n else f"{word:<11}" for n, word in enumerate(row))
            )
