"""Rendering and installation of the unit files."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import GlmError, Refused
from deploy.host import Host
from deploy.systemd.systemctl import Systemd
from service.contract import atomic, directories

CODE = Path(__file__).resolve().parent.parent.parent
TEMPLATES = CODE / "systemd"
UNITS = (
    "glm.socket",
    "glm@.service",
    "glm-live.service",
    "glm-ui.socket",
    "glm-ui.service",
    "glm-operate.socket",
    "glm-operate@.service",
    "glm.target",
)

_PLACEHOLDER = re.compile(r"@[A-Z_]+@")
_SPECIAL = frozenset(" \t\n%$\\\"';#@")  # characters with a meaning in unit files or in templates


@dataclass(frozen=True)
class Addresses:
    """The addresses of the service and of the page, as host:port."""

    listen: str = "127.0.0.1:8000"
    ui: str = "127.0.0.1:8501"
    more: tuple[str, ...] = ()
    """Further addresses of the service: see `glmctl listen`."""

    @property
    def service(self) -> tuple[str, ...]:
        """All addresses of the service."""
        return (self.listen, *self.more)


def installed(host: Host) -> Addresses:
    """Return the addresses in the installed unit files; the defaults where there are none."""
    listen = _matches(host.units / "glm.socket", r"^ListenStream=(\S+)") or [Addresses.listen]
    ui = _matches(host.units / "glm-ui.socket", r"^ListenStream=(\S+)") or [
        ":".join(found)
        for found in _matches(host.units / "glm-ui.service", r"--server\.address (\S+) --server\.port (\d+)")
    ]  # the service had the address before the page had a socket
    return Addresses(listen[0], ui[0] if ui else Addresses.ui, tuple(listen[1:]))


def _matches(path: Path, pattern: str) -> list[Any]:
    try:
        return re.findall(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return []


def glmctl(host: Host) -> list[str]:
    """Return the beginning of a glmctl command that a unit runs."""
    manager = ["--user"] if host.user else []
    return [str(Path(sys.executable).with_name("glmctl")), *manager, "--root", str(host.root)]


def render(host: Host, addresses: Addresses) -> dict[Path, str]:
    """Return the content of each unit file, with drop-ins for the system manager that a user manager cannot apply.

    Raises Refused if a path has characters that systemd would interpret.
    """
    for path in (host.root, host.runtime, host.state, host.settings, CODE, Path(sys.executable)):
        if special := set(str(path)) & _SPECIAL:
            raise Refused(
                f"{path} has characters with a meaning in unit files: {''.join(sorted(special))!r}",
                hint="choose another directory",
            )
    values = {
        "ListenStream=@LISTEN@": "\n".join(f"ListenStream={address}" for address in addresses.service),
        "@ROOT@": str(host.root),
        "@RUNTIME@": str(host.runtime),
        "@STATE@": str(host.state),
        "@SETTINGS@": str(host.settings),
        "@KEYS@": str(host.keys),
        "@POLICY@": str(host.policy),
        "@PYTHON@": sys.executable,
        "@CODE@": str(CODE),
        "@LISTEN@": addresses.listen,
        "@LISTEN_IP@": addresses.listen.rpartition(":")[0].strip("[]"),
        "@UI@": addresses.ui,
        "@OPERATORS@": str(host.operators),
        "@SYSTEMCTL@": "systemctl --user" if host.user else "systemctl",
        "@GLMCTL@": " ".join(glmctl(host)),
        "@WANTED_BY@": "default.target" if host.user else "multi-user.target",
    }
    rendered = {}
    for target, source in paths(host).items():
        text = source.read_text()
        for name, value in values.items():
            text = text.replace(name, value)
        rendered[target] = text
    return rendered


def paths(host: Host) -> dict[Path, Path]:
    """Return the path of each unit file, drop-ins included, with that of its template."""
    drop_ins = [] if host.user else sorted(TEMPLATES.glob("*.d/*.conf"))
    return {host.units / name: TEMPLATES / name for name in UNITS} | {
        host.units / drop_in.relative_to(TEMPLATES): drop_in for drop_in in drop_ins
    }


def install(host: Host, addresses: Addresses) -> list[Path]:
    """Write the unit files that differ, make the manager read them, and return their paths.

    Raises Refused for a path that unit files cannot hold, and GlmError if a file cannot be written.
    """
    changed = []
    try:
        for directory in (host.root, host.releases, host.state, host.runtime):
            directory.mkdir(parents=True, exist_ok=True)
        if not host.user:
            _take(host.runtime)
        for path, text in render(host, addresses).items():
            if path.exists() and path.read_text() == text:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(path, text)
            changed.append(path)
    except OSError as error:
        raise GlmError(
            f"cannot write {error.filename}: {error.strerror}", hint="run it as root, or with --user"
        ) from error
    Systemd(host.user).daemon_reload()  # always: an earlier call may have failed after it wrote the files
    return changed


def _take(runtime: Path) -> None:
    """Make the runtime directory root's, and remove symlinks: earlier versions gave it to the user of the service."""
    with directories.opened(runtime) as directory:
        os.fchown(directory, 0, -1)
        os.fchmod(directory, stat.S_IMODE(os.fstat(directory).st_mode) & ~0o022)
        for name in os.listdir(directory):  # noqa: PTH208  (of the descriptor)
            if stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=directory)


def outdated(host: Host) -> list[str]:
    """Return the names of the installed unit files that another version of glmctl wrote.

    Paths and addresses may differ, and comments. Files that are not where `glmctl install` puts them are left out.
    """
    drop_ins = [] if host.user else [str(path.relative_to(TEMPLATES)) for path in TEMPLATES.glob("*.d/*.conf")]
    return [
        name for name in (*UNITS, *sorted(drop_ins)) if not _is_of_this_version(host.units / name, TEMPLATES / name)
    ]


def _is_of_this_version(path: Path, template: Path) -> bool:
    try:
        found = list(_settings(path))
        first = next((line for line in found if line.startswith("ListenStream=")), None)
        found = [line for line in found if line == first or not line.startswith("ListenStream=")]
    except OSError:
        return True
    patterns = [".+".join(map(re.escape, _PLACEHOLDER.split(line))) for line in _settings(template)]
    return len(found) == len(patterns) and all(map(re.fullmatch, patterns, found))


def _settings(path: Path) -> Iterator[str]:
    """Yield the lines of a unit file without comments."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return (line for line in lines if line and not line.startswith(("#", ";")))
