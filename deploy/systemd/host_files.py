"""What an installation of the system manager has besides its units: user, groups, directories, rights, and commands."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import GlmError, Refused
from deploy.host import Host
from deploy.systemd.process import run
from deploy.systemd.units import TEMPLATES
from service.contract import atomic

__all__ = ["COMMANDS", "HostFiles"]

COMMANDS = ("glmctl", "glmctl-operator")
"""The commands that are linked into the path; the second is what sudo runs for members of glm-operators."""

_ROOT = "/srv/glm"  # in the templates, which can be used as they are, too


@dataclass(frozen=True)
class HostFiles:
    """The files of one host outside its unit directory. Tests use other directories than /etc and /usr/local/bin."""

    host: Host
    etc: Path = Path("/etc")
    commands: Path = Path("/usr/local/bin")

    def render(self) -> dict[Path, tuple[str, int]]:
        """Return content and mode of each file; those of sudo and of polkit only where these are installed."""
        files = {
            self.etc / "sysusers.d/glm.conf": ("glm.sysusers.conf", 0o644),
            self.etc / "tmpfiles.d/glm.conf": ("glm.tmpfiles.conf", 0o644),
        }
        if (self.etc / "sudoers.d").is_dir():
            files[self.etc / "sudoers.d/glm"] = ("glm.sudoers", 0o440)
        if (self.etc / "polkit-1/rules.d").is_dir():
            files[self.etc / "polkit-1/rules.d/50-glm.rules"] = ("glm.rules", 0o644)
        root = str(self.host.root)
        return {
            path: ((TEMPLATES / name).read_text().replace(_ROOT, root), mode) for path, (name, mode) in files.items()
        }

    def links(self) -> dict[Path, Path]:
        """Return the symlinks in the path, with the commands of this Python environment that they lead to."""
        return {self.commands / name: Path(sys.executable).with_name(name) for name in COMMANDS}

    def install(self) -> list[Path]:
        """Write what differs, create user, groups and directories, and return the paths that were written.

        Raises Refused if a command in the path is another program, and GlmError if a file cannot be written.
        """
        for link in self.links():
            if link.exists() and not link.is_symlink():
                raise Refused(f"{link} exists and is no symlink", hint=f"remove it: `rm {link}`")
        changed = []
        try:
            for path, (text, mode) in self.render().items():
                if not path.exists() or path.read_text() != text or path.stat().st_mode & 0o777 != mode:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    atomic.write_text(path, text, mode=mode)
                    changed.append(path)
            for link, target in self.links().items():
                if not link.is_symlink() or link.readlink() != target:
                    atomic.replace_symlink(link, str(target))
                    changed.append(link)
        except OSError as error:
            raise GlmError(
                f"cannot write {error.filename}: {error.strerror}", hint="run it as root, or with --user"
            ) from error
        run(["systemd-sysusers", str(self.etc / "sysusers.d/glm.conf")])
        run(["systemd-tmpfiles", "--create", str(self.etc / "tmpfiles.d/glm.conf")])
        return changed

    def present(self) -> list[Path]:
        """Return the files of this installation that exist; a link that leads to another one's command is left out."""
        links = [link for link, target in self.links().items() if link.is_symlink() and link.readlink() == target]
        return [*(path for path in self.render() if path.exists()), *links]
