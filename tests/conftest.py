"""Fixtures: checkpoints of the true architecture, and hosts to serve them; and which tests run beside which."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from service.contract import journald
from service.demo_models import tiny
from tests.box import Box, Engine, empty_host, live_host
from tests.clients import table

PHASES = ("preflight", "prepare", "vacate", "start", "verify", "canary", "cutover", "bake", "retire")

# What rollouts in this process do is nothing for the journal of this machine.
journald.SOCKET = Path("/nonexistent")

# A run in the background of a shell ignores Ctrl-C, and so would every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Path]:
    """Two tiny checkpoints that answer differently, by the version they become; the processes of one run share them."""
    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        shared = shared.parent
    directory = shared / "checkpoints"
    with _locked(shared / "checkpoints.lock", fcntl.LOCK_EX):
        for version, seed in (("1.0.0", 1), ("1.1.0", 2)):
            if not (directory / version).exists():
                tiny.make(directory / version, seed=seed, dtype="float32")  # in bf16 answers depend on the batch
    return {version: directory / version for version in ("1.0.0", "1.1.0")}


@pytest.fixture(autouse=True)
def restored_umask() -> Iterator[None]:
    """Take back what a verb of glmctl did that ran in this process: it sets the process's umask."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


def engine_of(request: pytest.FixtureRequest) -> Engine:
    """The engine of a test's hosts: the real one where the test or its module is marked `model`."""
    return "model" if request.node.get_closest_marker("model") else "dummy"


@pytest.fixture(scope="module")
def stocked_live(checkpoints: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Box]:
    """A host for a whole module whose tests change nothing: 1.0.0 is live, 1.1.0 was added."""
    with live_host(checkpoints, engine_of(request)) as box:
        yield box


@pytest.fixture
def empty_box(request: pytest.FixtureRequest) -> Iterator[Box]:
    """A host on which nothing was deployed yet."""
    with empty_host(engine_of(request)) as box:
        yield box


@pytest.fixture
def stocked_box(empty_box: Box, checkpoints: dict[str, Path]) -> Box:
    """A host that has both releases, and nothing live."""
    empty_box.stock(checkpoints)
    return empty_box


@pytest.fixture
def box(stocked_box: Box) -> Box:
    """A host on which 1.0.0 is live, in blue."""
    stocked_box.glmctl("deploy", "1.0.0")
    return stocked_box


@pytest.fixture
def add_release(checkpoints: dict[str, Path], tmp_path: Path) -> Callable[..., None]:
    """Adds a release like 1.1.0, after its checkpoint was changed."""

    def add(box: Box, version: str, *words: str, change: Callable[[Path], None] = lambda _: None) -> None:
        copy = tmp_path / version
        shutil.copytree(checkpoints["1.1.0"], copy)
        change(copy)
        box.glmctl("release", "add", str(copy), "--version", version, *words)

    return add


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --long and --clients-table."""
    parser.addoption("--long", action="store_true", help="run the long proofs too (make test-all)")
    parser.addoption("--clients-table", action="store_true", help="write the table of tests/clients/README.md")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip long proofs, and distribute the rest: a module by itself, unless each of its tests has a host of its own.

    Tests that measure times or load every core come last; no other test runs beside them.
    """
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="a long proof: `make test-all` runs it"))
        if item.get_closest_marker("alone"):
            item.add_marker(pytest.mark.xdist_group("alone"))
        elif not _has_own_host(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


def _has_own_host(item: pytest.Item) -> bool:
    names = getattr(item, "fixturenames", ())
    info = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
    return "empty_box" in names and not any(found[-1].scope == "module" for found in info.values())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hold a lock that the other processes of this run share, and that a test which runs alone holds exclusively."""
    with ExitStack() as stack:
        if hasattr(item.config, "workerinput"):
            alone = item.get_closest_marker("alone") is not None
            lock = _lock_of_run(os.getppid())
            with _locked(lock.with_suffix(".queue"), fcntl.LOCK_EX):  # else the shared ones might never be free
                stack.enter_context(_locked(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        return (yield)


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _lock_of_run(controller: int) -> Path:
    return Path(tempfile.gettempdir()) / f"glm-tests-{controller}.lock"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the locks, once the processes of this run have ended."""
    if not hasattr(config, "workerinput"):
        for suffix in (".lock", ".queue"):
            _lock_of_run(os.getpid()).with_suffix(suffix).unlink(missing_ok=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the crash matrix, and what the packages of tests/clients do, which --clients-table also writes."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    _print_crashes(terminalreporter, reports)
    if clients := table.results(reports):
        terminalreporter.section("the packages of tests/clients")
        for line in table.lines(clients):
            terminalreporter.write_line(line)
        if config.getoption("--clients-table"):
            table.write(clients)


def _print_crashes(terminalreporter: pytest.TerminalReporter, reports: list[object]) -> None:
    """Print which version serves at the end, and how many requests were lost with the process."""
    crashes = {
        tuple(cell): text
        for report in reports
        for name, (cell, text) in getattr(report, "user_properties", ())
        if name == "crash" and getattr(report, "when", None) == "call"
    }
    for strategy in dict.fromkeys(cell[0] for cell in crashes):
        cells = {cell[1:]: found for cell, found in crashes.items() if cell[0] == strategy}
        phases = sorted({phase for _, phase in cells}, key=PHASES.index)
        terminalreporter.section(f"kill -9 in a rollout by {strategy}: who serves in the end, -N: lost with the killed")
        victims = dict.fromkeys(victim for victim, _ in cells)
        rows = [[victim, *(cells.get((victim, phase), "") for phase in phases)] for victim in victims]
        for row in [["", *phases], *rows]:
            terminalreporter.write_line(
                "".join(f"{word:<18}" if not n else f"{word:<11}" for n, word in enumerate(row))
            )
