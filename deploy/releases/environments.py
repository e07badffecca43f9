"""Python environments of releases: one with vLLM is made below the root, any other directory may be named.

A release refers to its environment by the symlink `env`; a slot that serves the release runs in it. It needs what this
program needs, and this program on its path.
"""

from __future__ import annotations

import ast
import fcntl
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

from deploy.errors import GlmError, Refused
from deploy.host import Host
from service.contract import atomic

__all__ = ["CODE", "Environment", "Environments", "Say"]

CODE = Path(__file__).resolve().parent.parent.parent
"""The checkout, which environments have on their path."""

Say = Callable[[str], None]
"""Called with what is being done, a line at a time."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_MARK = "glm.json"  # written when an environment is complete
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+!-]{0,40}")
_ARGUMENTS = ("vllm", "engine", "arg_utils.py")
_CLASSES = ("EngineArgs", "AsyncEngineArgs")
_OF_VLLM = ("torch", "llguidance")
"""Requirements of this program that vLLM has too, in a version of its own."""
_ALONE = "transformers"
"""One that vLLM limits to older versions; the prompts of this program need a newer one, with which vLLM works."""


@dataclass(frozen=True)
class Environment:
    """A directory with a Python interpreter and libraries."""

    path: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"

    @property
    def packages(self) -> Path:
        """The directory of its packages; it need not exist."""
        return next(iter(sorted(self.path.glob("lib/python3.*/site-packages"))), self.path / "lib")

    @property
    def vllm(self) -> str | None:
        """The version of vLLM in it; None if it has none."""
        found = [path.name.split("-")[1] for path in self.packages.glob("vllm*-*.dist-info") if "-" in path.name]
        return found[0].removesuffix(".dist") if found else None

    def argument_names(self) -> frozenset[str] | None:
        """Return the names of its vLLM's AsyncEngineArgs, read from the source; None without vLLM. Runs no code."""
        source = self.packages.joinpath(*_ARGUMENTS)
        try:
            tree = ast.parse(source.read_bytes())
        except (OSError, SyntaxError, ValueError):
            return None
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in _CLASSES]
        fields = [field for node in classes for field in node.body if isinstance(field, ast.AnnAssign)]
        return frozenset(field.target.id for field in fields if isinstance(field.target, ast.Name))

    def require_usable(self) -> None:
        """Raise Refused if a slot cannot run in it."""
        for program in ("python", "gunicorn"):
            if not (self.path / "bin" / program).exists():
                raise Refused(
                    f"{self.path} is no environment that a slot can run in: it has no bin/{program}",
                    hint="`glmctl env make NAME --vllm VERSION` makes one",
                )


@dataclass(frozen=True)
class Environments:
    """The environments below the root of a host."""

    host: Host

    @property
    def directory(self) -> Path:
        """Where they are."""
        return self.host.root / "envs"

    def find(self, name: str) -> Environment:
        """Return the environment of this name, or that in the directory `name`; raises Refused."""
        if "/" in name:
            found = Environment(Path(name).absolute())
        else:
            found = Environment(self.directory / _checked(name))
            if not (found.path / _MARK).is_file():
                known = ", ".join(each.path.name for each in self.list()) or "none"
                raise Refused(
                    f"there is no environment {name}",
                    hint=f"existing environments: {known}; `glmctl env make {name} --vllm VERSION` makes it",
                )
        found.require_usable()
        return found

    def list(self) -> list[Environment]:
        """Return those that are complete, by name."""
        return [Environment(path.parent) for path in sorted(self.directory.glob(f"*/{_MARK}"))]

    def users(self, environment: Environment) -> tuple[str, ...]:
        """Return the releases that run in an environment."""
        links = sorted(self.host.releases.glob("[!.]*/env"))
        return tuple(link.parent.name for link in links if link.resolve() == environment.path.resolve())

    def make(self, name: str, package: str, version: str, say: Say, *, index: Sequence[str] = ()) -> Environment:
        """Make an environment with `package` of this version and what this program needs; one that exists is Refused.

        `index`: further arguments for pip. An interrupted one is not listed, and the next call begins anew. Raises
        GlmError with the last line of what failed.
        """
        if not _VERSION.fullmatch(version):
            raise Refused(f"{version!r} is not a version of vLLM", hint="such as 0.32.0")
        environment = Environment(self.directory / _checked(name))
        self._prepare()
        with self._locked():
            if (environment.path / _MARK).exists():
                raise Refused(f"environment {name} exists", hint="choose another name: releases may run in it")
            shutil.rmtree(environment.path, ignore_errors=True)
            say(f"making {environment.path}")
            _run([sys.executable, "-m", "venv", str(environment.path)], say)
            pip = [str(environment.python), "-m", "pip", "install", "--disable-pip-version-check", *index]
            own = [line for line in requires("glm-handover") or () if "extra ==" not in line]
            alone = [line for line in own if _project(line) == _ALONE]
            rest = [line for line in own if _project(line) not in {*_OF_VLLM, _ALONE}]
            _run([*pip, f"{package}=={version}"], say)
            _run([*pip, *rest], say)
            _run([*pip, "--no-deps", *alone], say)
            (environment.packages / "glm.pth").write_text(f"{CODE}\n")
            atomic.write_text(
                environment.path / _MARK, json.dumps({"package": package, "version": version}), durable=True
            )
        return environment

    def remove(self, name: str) -> None:
        """Delete an environment; raises Refused while a release runs in it."""
        environment = self.find(name) if "/" not in name else Environment(self.directory / _checked(name))
        if users := self.users(environment):
            raise Refused(
                f"environment {name} is that of release {users[0]}", hint="`glmctl release remove` removes a release"
            )
        (environment.path / _MARK).unlink(missing_ok=True)
        shutil.rmtree(environment.path)

    def _prepare(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GlmError(
                f"cannot write to {self.directory}: {error.strerror}", hint="run it as root, or with --user"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.directory / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Refused("another process makes an environment", hint="wait until it is done") from error
            yield


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise Refused(f"{name!r} is not a valid name", hint="use letters, digits and . _ + -; or the path of one")
    return name


def _project(requirement: str) -> str:
    """Return the name of the project that a requirement is for."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return match[0].lower() if match else ""


def _run(argv: Sequence[str], say: Say) -> None:
    """Run a command, and pass its lines on; raises GlmError with the last error if it fails."""
    last = ""
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as running:
        assert running.stdout
        try:
            for line in running.stdout:
                text = " ".join(line.split())
                if text.startswith(("ERROR", "error", "Error")) or not last.startswith("ERROR"):
                    last = text or last
                if text:
                    say(text[:100])
        except BaseException:
            with suppress(ProcessLookupError):
                running.kill()
            raise
    if running.returncode:
        raise GlmError(
            f"{Path(argv[0]).name} failed: {last}",
            hint="the index of packages must be reachable; pip.conf can name another",
        )
