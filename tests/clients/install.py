"""Makes the environments of the clients in `.clients/`, apart from the project's: `python -m tests.clients.install`.

One whose requirements have not changed since it was made is kept.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.clients.packages import ENVIRONMENTS, HERE, PYTHON_ENVIRONMENTS


def main() -> None:
    """Make what is missing; exits with 1 after a failure, whose environment is then missing as a whole."""
    made = [_make(name, HERE / "requirements" / f"{name}.txt") for name in PYTHON_ENVIRONMENTS]
    made.append(_make("node", HERE / "package-lock.json"))
    sys.exit(0 if all(made) else 1)


def _make(name: str, pins: Path) -> bool:
    directory = ENVIRONMENTS / name
    stamp = directory / ".made-of"
    if stamp.exists() and stamp.read_bytes() == pins.read_bytes():
        return True
    shutil.rmtree(directory, ignore_errors=True)
    try:
        _install_node(directory) if name == "node" else _install_python(directory, pins)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{directory} was not made, and the tests of its packages will be skipped: {error}", file=sys.stderr)
        shutil.rmtree(directory, ignore_errors=True)
        return False
    shutil.copyfile(pins, stamp)
    return True


def _install_python(directory: Path, pins: Path) -> None:
    """Install exactly what is pinned, without what it depends on: torch is not pinned, and must not be installed."""
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    pip = [str(directory / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--no-deps"]
    subprocess.run([*pip, "--requirement", str(pins)], check=True)
    if directory.name == "guidellm":
        [packages] = directory.glob("lib/python*/site-packages")
        (packages / "torch.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # the project's, searched last


def _install_node(directory: Path) -> None:
    directory.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(HERE / name, directory / name)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=directory, check=True)


if __name__ == "__main__":
    main()
