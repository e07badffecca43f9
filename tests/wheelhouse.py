"""What a booted host without internet is given to install: every wheel, and a copy of the code."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent
WHEELHOUSE = CODE / ".wheelhouse"
PYTHON = "/usr/bin/python3"  # the hosts'
BUILDERS = ("hatchling", "editables")  # what pip needs to install the checkout itself


def build(directory: Path) -> Path:
    """Build every wheel that a host needs, unless they are there, and return their directory; `directory` is empty."""
    project = tomllib.loads((CODE / "pyproject.toml").read_text())["project"]
    version = subprocess.check_output([PYTHON, "--version"], text=True).strip()
    contents = "\n".join([version, *project["dependencies"], *BUILDERS])
    label = WHEELHOUSE / "contents.txt"
    if not label.exists() or label.read_text() != contents:
        shutil.rmtree(WHEELHOUSE, ignore_errors=True)
        subprocess.run([PYTHON, "-m", "venv", directory], check=True, timeout=60)
        subprocess.run(
            [directory / "bin/pip", "wheel", "--quiet", "--wheel-dir", WHEELHOUSE,
             *project["dependencies"], *BUILDERS],
            check=True, timeout=600,
        )  # fmt: skip
        label.write_text(contents)
    return WHEELHOUSE


def copy_code(directory: Path) -> Path:
    """Copy the code as it is now, which may change while tests run, and return the copy."""
    for folder in ("deploy", "service", "ui", "systemd"):
        shutil.copytree(CODE / folder, directory / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("README.md", "pyproject.toml"):
        shutil.copy(CODE / file, directory)
    return directory
