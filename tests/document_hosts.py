"""Bare booted hosts on which the command lines of the documents are typed, by root and by a user.

They have no internet: pip finds wheels in a directory, git a repository with the code as it is now. Nothing else is
there but what Debian's packages bring, and two small checkpoints.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.console import CODE, Typed, read, script
from tests.hosts import BootedHost, booted_host
from tests.wheelhouse import PACKAGES, packages, stubs

REPOSITORY = "/usr/local/share/glm-handover.git"
CHECKPOINTS = "/usr/local/share/checkpoints"
USER = "ada"

_WHEELS = "/usr/local/share/wheels"
_PREPARE = f"""
mkdir -p /home
useradd --create-home --shell /bin/bash {USER}
git config --system safe.directory '*'
cat > /etc/pip.conf <<'END'
[global]
no-index = true
find-links = {_WHEELS}
disable-pip-version-check = true
END
"""


@dataclass(frozen=True)
class DocumentHost:
    """A host, and how lines are typed on it."""

    host: BootedHost

    def sh(self, text: str, *, seconds: float = 120) -> str:
        """Run a shell script as root, which is not a line of a document; raises HostError if it fails."""
        return self.host.run(["sh", "-ec", text], seconds=seconds)

    def type(self, *typed: str, user: str = "root", directory: str = "~", seconds: float = 600) -> list[Typed]:
        """Type lines into one shell of a user who has just logged in; fails the test at a line that fails."""
        words = script(typed)
        login = ["runuser", "--login", user, "--shell=/bin/bash", f"--command=cd {directory} && exec bash 2>&1"]
        said = self.host.run(
            ["sh", "-c", f"printf %s {shlex.quote(words)} | {shlex.join(login)}"], check=False, seconds=seconds
        )
        found = read(said, typed)
        failed = [one for one in found if one.code]
        assert not failed, f"{failed[0].text}\nended with {failed[0].code}\n{failed[0].output[-6000:]}"
        assert len(found) == len(typed), said[-6000:]
        return found


@contextmanager
def document_host(directory: Path, checkpoints: Mapping[str, Path]) -> Iterator[DocumentHost]:
    """Boot a bare host for the documents. `directory`: an empty one; `checkpoints`: by the version they become."""
    wheels, repository, models = (directory / name for name in ("wheels", "repository.git", "checkpoints"))
    wheels.mkdir()
    models.mkdir()
    stubs(wheels)
    commit(repository)
    for version, path in checkpoints.items():
        subprocess.run(["cp", "-r", path, models / version], check=True, timeout=60)
    for path in (wheels, repository, models):
        path.chmod(0o755)
    mounted = {wheels: _WHEELS, repository: REPOSITORY, models: CHECKPOINTS, packages(): PACKAGES}
    with booted_host(readable=mounted) as host:
        found = DocumentHost(host)
        found.sh(_PREPARE)
        yield found


def commit(repository: Path) -> None:
    """Make a git repository with all files of the checkout as they are now, except those that git ignores."""
    env = os.environ | {"GIT_DIR": str(repository), "GIT_WORK_TREE": str(CODE)}
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    for words in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        [*identity, "commit", "--quiet", "--message=The code as it is now"],
    ):
        subprocess.run(["git", *words], env=env, cwd=CODE, check=True, stdout=subprocess.DEVNULL, timeout=120)
