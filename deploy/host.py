"""The paths of an installation, for the system manager or for a user manager."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from service.contract import regular_file

__all__ = ["Host"]


@dataclass(frozen=True)
class Host:
    """The paths of one installation. The symlinks in `root` are its state: the live slot, and what each slot serves."""

    user: bool
    root: Path
    runtime: Path
    state: Path
    units: Path
    settings: Path

    @classmethod
    def find(cls, *, user: bool, root: Path | None = None) -> Host:
        """Return the installation of the system manager, or of the calling user's manager."""
        if not user:
            return cls(
                user=False,
                root=root or Path("/srv/glm"),
                runtime=Path("/run/glm"),
                state=Path("/var/lib/glm"),
                units=Path("/etc/systemd/system"),
                settings=Path("/etc/glm/glm.env"),
            )
        home = Path.home()

        def xdg(name: str, default: Path) -> Path:
            return Path(os.environ.get(name) or default)

        config = xdg("XDG_CONFIG_HOME", home / ".config")
        return cls(
            user=True,
            root=root or xdg("XDG_DATA_HOME", home / ".local/share") / "glm",
            runtime=xdg("XDG_RUNTIME_DIR", Path(f"/run/user/{os.getuid()}")) / "glm",
            state=xdg("XDG_STATE_HOME", home / ".local/state") / "glm",
            units=config / "systemd/user",
            settings=config / "glm/glm.env",
        )

    @property
    def releases(self) -> Path:
        """The directory of the releases."""
        return self.root / "releases"

    @property
    def policy(self) -> Path:
        """The file with the operator's settings for all rollouts; optional."""
        return self.settings.with_name("glm.toml")

    @property
    def keys(self) -> Path:
        """The file of API keys, if the settings of the service name no other; optional."""
        return self.settings.with_name("keys")

    @property
    def operators(self) -> Path:
        """The file of operators' keys, for `glmctl operate`; optional."""
        return self.settings.with_name("operators")

    def setting(self, name: str) -> str | None:
        """Return the value of GLM_<name> in the settings of the service; None if it is not set there."""
        return self.variable(f"GLM_{name}")

    def variable(self, name: str) -> str | None:
        """Return the value of an environment variable in the settings of the service; None if it is not set there."""
        try:
            lines = regular_file.read(self.settings, follow=True).decode(errors="replace").splitlines()
        except OSError:
            return None
        found = [line.partition("=")[2] for line in lines if line.partition("=")[0].strip() == name]
        return found[-1].strip().strip("\"'") if found else None

    def unit(self, slot: str) -> str:
        """Return the unit of `slot`."""
        return f"glm@{slot}.service"
