"""The folder list is the architecture: which rooms may import which, and how large a module may be."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CODE = Path(__file__).resolve().parent.parent
PACKAGES = ("deploy", "service", "ui")
CONTRACT = "service.contract"
FORBIDDEN_LIBRARIES = {
    "deploy": {"torch", "transformers", "starlette", "uvicorn", "gunicorn", "streamlit"},
    "service": {"click", "rich", "streamlit"},
    "ui": {"torch", "transformers", "uvicorn"},
}
CHAINS = {
    "deploy": (
        ("errors", "interrupts", "host", "policy", "display", "systemd", "analysis", "journal", "releases", "rollout",
         "reports", "demo", "monitoring", "operate", "commands", "cli"),
        ("loadtest",),
    ),
    "service": (
        ("contract", "settings", "identity", "isolation", "http_client", "fairness", "model", "engine",
         "metric_files", "metrics", "host_metrics", "timing", "chat", "completions", "responses", "refusals", "logs",
         "telemetry", "api", "batches", "app", "process", "gunicorn.conf", "__main__"),
        ("contract", "timing", "http_client", "routing", "handover", "process"),
        ("settings", "fairness", "metrics", "refusals", "logs", "telemetry", "handover"),
        ("contract", "model", "demo_models"),
    ),
}  # fmt: skip
"""A room or a root module may import those before it in one of its chains."""
MAX_LINES = 350
MAX_ROOT_FILES = 10
SCREEN = 40  # lines


def _name(path: Path) -> str:
    name = ".".join(path.relative_to(CODE).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {
    _name(path): path
    for package in PACKAGES
    for path in sorted((CODE / package).rglob("*.py"))
    if "ansible" not in path.parts  # its modules run in other environments
}


@cache
def _imports(module: str) -> frozenset[str]:
    """Return the modules that a module imports anywhere, those of this project by their full names."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return frozenset(found)


def _of(package: str) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a module of `package` and a module that it imports."""
    for module in MODULES:
        if f"{module}.".startswith(f"{package}."):
            for imported in _imports(module):
                yield module, imported


def _room(module: str, package: str) -> str:
    """Return the room of a module: its folder below `package`, or its name if it lies in the root."""
    rest = module.removeprefix(f"{package}.")
    return rest if rest == "gunicorn.conf" else rest.partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_share_the_contract_alone(package: str) -> None:
    """A package imports nothing of another one except service.contract, and no library of another one."""
    crossing = []
    for module, imported in _of(package):
        top = imported.partition(".")[0]
        is_foreign = top in PACKAGES and top != package and not f"{imported}.".startswith(f"{CONTRACT}.")
        if is_foreign or top in FORBIDDEN_LIBRARIES[package]:
            crossing.append(f"{module} imports {imported}")
    assert crossing == []


def test_the_contract_imports_the_standard_library_alone() -> None:
    """Everything that imports it, including the page, then needs no other library for it."""
    foreign = [
        f"{module} imports {imported}"
        for module, imported in _of(CONTRACT)
        if imported.partition(".")[0] not in sys.stdlib_module_names and not f"{imported}.".startswith(f"{CONTRACT}.")
    ]
    assert foreign == []


@pytest.mark.parametrize("package", CHAINS)
def test_rooms_import_in_one_direction(package: str) -> None:
    """Every room is in a chain, and imports only rooms before it."""
    wrong = []
    rooms = {_room(module, package) for module in MODULES if module.startswith(f"{package}.")}
    assert rooms == {room for chain in CHAINS[package] for room in chain}
    for module, imported in _of(package):
        if module == package or not imported.startswith(f"{package}."):
            continue
        room, other = _room(module, package), _room(imported, package)
        chains = [chain for chain in CHAINS[package] if room in chain]
        if room != other and not any(other in chain[: chain.index(room)] for chain in chains):
            wrong.append(f"{module} imports {imported}")
    assert wrong == []


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for type checking count too."""
    graph = {module: {one for one in _imports(module) if one in MODULES and one != module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_the_rollout_reads_like_its_sentence() -> None:
    """deploy() calls the phases in the order of the documentation, inside the frame, and fits one screen."""
    tree = ast.parse(MODULES["deploy.rollout.rollout"].read_text())
    [deploy] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "deploy"]
    [frame] = [
        node
        for node in ast.walk(deploy)
        if isinstance(node, ast.With) and ast.unparse(node.items[0].context_expr) == "recorded(rollout, undo)"
    ]
    assert [ast.unparse(statement) for statement in frame.body] == [
        f"{phase}(rollout)"
        for phase in ("preflight", "prepare", "vacate", "start", "verify", "canary", "cutover", "bake", "retire")
    ]
    assert deploy.end_lineno is not None
    assert deploy.end_lineno - deploy.lineno < SCREEN


def test_no_module_is_long() -> None:
    """A module is a noun that can be read at once."""
    sizes = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: lines for module, lines in sizes.items() if lines > MAX_LINES} == {}


@pytest.mark.parametrize("package", CHAINS)
def test_the_root_folders_are_small(package: str) -> None:
    """What is not needed to start the program lies in a room."""
    assert len([path for path in (CODE / package).iterdir() if path.is_file()]) <= MAX_ROOT_FILES
