"""Installing our unit files, rendered for one host."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import GlmError, Refused
from deploy.host import Host
from deploy.systemd.systemctl import Systemd

CODE = Path(__file__).resolve().parent.parent.parent
TEMPLATES = CODE / "systemd"
UNITS = ("glm.socket", "glm@.service", "glm-live.service", "glm-ui.service", "glm.target")

_MEANS_SOMETHING = frozenset(" \t\n%$\\\"';#@")


@dataclass(frozen=True)
class Addresses:
    """Where the service and the page listen, as host:port."""

    listen: str = "127.0.0.1:8000"
    ui: str = "127.0.0.1:8501"


def render(host: Host, addresses: Addresses) -> dict[Path, str]:
    """The files to write. The system manager gets drop-ins that a user manager could not apply."""
    for path in (host.root, host.runtime, host.state, host.settings, CODE, Path(sys.executable)):
        if strange := set(str(path)) & _MEANS_SOMETHING:
            raise Refused(f"{path} holds {''.join(sorted(strange))!r}, which would mean something else in a unit file")
    ui_address, _, ui_port = addresses.ui.rpartition(":")
    values = {
        "@ROOT@": str(host.root),
        "@RUNTIME@": str(host.runtime),
        "@STATE@": str(host.state),
        "@SETTINGS@": str(host.settings),
        "@PYTHON@": sys.executable,
        "@CODE@": str(CODE),
        "@LISTEN@": addresses.listen,
        "@UI_ADDRESS@": ui_address,
        "@UI_PORT@": ui_port,
        "@SYSTEMCTL@": "systemctl --user" if host.user else "systemctl",
        "@WANTED_BY@": "default.target" if host.user else "multi-user.target",
    }
    sources = {host.units / name: TEMPLATES / name for name in UNITS}
    if not host.user:
        for drop_in in sorted(TEMPLATES.glob("*.d/*.conf")):
            sources[host.units / drop_in.relative_to(TEMPLATES)] = drop_in
    rendered = {}
    for target, source in sources.items():
        text = source.read_text()
        for name, value in values.items():
            text = text.replace(name, value)
        rendered[target] = text
    return rendered


def install(host: Host, addresses: Addresses) -> list[Path]:
    """Write what differs, tell the manager, and return what was written; nothing on a second call."""
    changed = []
    try:
        for directory in (host.root, host.releases, host.state):
            directory.mkdir(parents=True, exist_ok=True)
        for path, text in render(host, addresses).items():
            if path.exists() and path.read_text() == text:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(text)
            temporary.replace(path)
            changed.append(path)
    except OSError as error:
        raise GlmError(
            f"cannot write {error.filename}: {error.strerror}", hint="run it as root, or with --user"
        ) from error
    Systemd(host.user).daemon_reload()  # whatever changed: the last time it may not have heard
    return changed
