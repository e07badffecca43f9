"""What a booted host without internet is given to install: directories of wheels, and a copy of the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent
PACKAGES = "/usr/local/lib/glm/site-packages"
"""Where hosts find the packages of this environment, if `stubs` made the wheels.

Below a directory of another name Streamlit takes itself for its source tree, and serves no page."""

_PYTHON = "/usr/bin/python3"  # the hosts'
_BUILDERS = ("hatchling", "editables")  # what pip needs to install the checkout itself
_REAL = CODE / ".wheelhouse"


def packages() -> Path:
    """The packages of this environment, to be mounted at `PACKAGES`."""
    return Path(metadata.distribution("pip").locate_file(""))  # type: ignore[arg-type]


def can_stub() -> bool:
    """Return whether the hosts' Python can use the packages of this environment."""
    asked = "import sys; print(sys.version_info[:2])"
    return subprocess.check_output([_PYTHON, "-c", asked], text=True).strip() == str(sys.version_info[:2])


def stubs(directory: Path) -> Path:
    """Make wheels without contents of all packages of this environment in `directory`, and return it.

    The hosts find the code at `PACKAGES`. To install the contents takes a minute of CPU time.
    """
    builders = _REAL / "builders"
    if not (builders / "contents.txt").exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(builders), *_BUILDERS]
        subprocess.run(command, check=True, timeout=120)
        (builders / "contents.txt").touch()
    complete = [Path(shutil.copy(wheel, directory)).name.partition("-")[0] for wheel in builders.glob("*.whl")]
    for found in metadata.distributions():
        plain = re.sub(r"[-_.]+", "_", found.metadata["Name"]).lower()
        if plain in {"glm_handover", *complete}:
            continue
        info = f"{plain}-{found.version}.dist-info"
        files = {
            # what runs with this environment's 3.11.5 may ask for it, and the host's Python be 3.11.2
            f"{info}/METADATA": re.sub(r"(?m)^Requires-Python: .*\n", "", str(found.read_text("METADATA"))),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": found.read_text("entry_points.txt") or "",
        }
        if plain == "click":  # one that is always installed
            files["glm_packages.pth"] = f"{PACKAGES}\n"
        programs = {f"{plain}-{found.version}.data/scripts/{path.name}": path for path in _programs(found)}
        rows = "".join(f"{path},,\n" for path in [*files, *programs, f"{info}/RECORD"])
        with zipfile.ZipFile(directory / f"{plain}-{found.version}-py3-none-any.whl", "w") as wheel:
            for path, text in {**files, f"{info}/RECORD": rows}.items():
                wheel.writestr(path, text)
            for name, program in programs.items():
                wheel.write(program, name)
    return directory


def _programs(package: metadata.Distribution) -> list[Path]:
    """Return the programs that a package brings as files, such as ruff: pip does not make them of entry points."""
    made = {point.name for point in package.entry_points if point.group == "console_scripts"}
    files = [Path(str(file.locate())).resolve() for file in package.files or [] if file.parent.name == "bin"]
    return [file for file in files if file.name not in made and file.parent == Path(sys.executable).parent]


def real(directory: Path) -> Path:
    """Return every wheel that a host needs; built once, and again when something else is needed.

    `directory`: an empty one.
    """
    project = tomllib.loads((CODE / "pyproject.toml").read_text())["project"]
    version = subprocess.check_output([_PYTHON, "--version"], text=True).strip()
    contents = "\n".join([version, *project["dependencies"], *_BUILDERS])
    label = _REAL / "contents.txt"
    if not label.exists() or label.read_text() != contents:
        shutil.rmtree(_REAL, ignore_errors=True)
        subprocess.run([_PYTHON, "-m", "venv", directory], check=True, timeout=60)
        subprocess.run(
            [directory / "bin/pip", "wheel", "--quiet", "--wheel-dir", _REAL, *project["dependencies"], *_BUILDERS],
            check=True, timeout=600,
        )  # fmt: skip
        label.write_text(contents)
    return _REAL


def copy_code(directory: Path) -> Path:
    """Copy the code as it is now, which may change while tests run, and return the copy."""
    for folder in ("deploy", "service", "ui", "systemd"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CODE / folder, directory / folder, ignore=ignored, symlinks=True)
    for file in ("README.md", "pyproject.toml"):
        shutil.copy(CODE / file, directory)
    return directory
