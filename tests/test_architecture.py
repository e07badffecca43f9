"""The folder list is the architecture: who may know whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CODE = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "deploy": {"service", "ui", "torch", "transformers", "starlette", "uvicorn", "gunicorn", "streamlit"},
    "service": {"deploy", "ui", "click", "rich", "streamlit"},
    "ui": {"deploy", "service", "torch", "transformers", "starlette"},
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_meet_in_files_and_sockets_only(package: str) -> None:
    """No package imports another, nor a library that belongs to another."""
    modules = list((CODE / package).rglob("*.py"))
    assert modules
    crossing = {str(path): bad for path in modules if (bad := _imports(path) & FORBIDDEN[package])}
    assert not crossing


def test_the_rollout_reads_like_its_sentence() -> None:
    """deploy/rollout/rollout.py names the phases in the order in which the design tells them."""
    text = (CODE / "deploy/rollout/rollout.py").read_text()
    order = [text.index(f"phases.{name}(rollout)") for name in
             ("preflight", "prepare", "start", "verify", "canary", "cutover", "bake", "retire")]  # fmt: skip
    assert order == sorted(order)


def test_no_module_is_long() -> None:
    """Modules are nouns, and short."""
    sizes = {
        str(path): len(path.read_text().splitlines()) for name in FORBIDDEN for path in (CODE / name).rglob("*.py")
    }
    assert {path: lines for path, lines in sizes.items() if lines > 310} == {}
