"""The file `$RUNTIME/<slot>/<generation>/successor.json`: interpreter and settings of the next generation in place."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from service.contract import atomic, fields

__all__ = ["Successor"]

_NAME = "successor.json"
_OF_CLIENTS = "GLM_API_KEY"  # no setting of the service, and not to be written to a file


@dataclass(frozen=True)
class Successor:
    """An interpreter and the GLM_* settings.

    A master that re-executes itself (USR2) has the environment with which it was started. The reload command runs with
    the unit's current environment and stores it in this file, so that a reload applies new settings and new code.
    """

    python: str
    settings: dict[str, str]

    @classmethod
    def of_this_process(cls) -> Successor:
        """Return the interpreter and settings of the calling process."""
        names = {name for name in os.environ if name.startswith("GLM_")} - {_OF_CLIENTS}
        settings = {name: os.environ[name] for name in names}
        return cls(settings.get("GLM_PYTHON", sys.executable), settings)

    @classmethod
    def read(cls, directory: Path) -> Successor:
        """Read the file in the generation's `directory`; if it is absent (USR2 without a reload), use this process."""
        with suppress(OSError, ValueError):
            return cls.parse(directory)
        return cls.of_this_process()

    @classmethod
    def parse(cls, directory: Path) -> Successor:
        """Read the file in the generation's `directory`; raises OSError, and ValueError if it is damaged."""
        found = fields.read(cls, directory / _NAME)
        if not found.python.startswith("/"):
            raise ValueError(f"python is {found.python[:100]!r}, not an absolute path")
        if wrong := [name for name in found.settings if not name.startswith("GLM_") or "=" in name]:
            raise ValueError(f"settings.{wrong[0][:100]} is not the name of a setting")
        return found

    def write(self, directory: Path) -> None:
        """Replace the file in `directory`; raises OSError."""
        atomic.write_text(directory / _NAME, json.dumps(asdict(self)))

    def enter(self, environment: dict[str, str]) -> list[str]:
        """Replace the GLM_* settings in `environment`, and return the command to execute."""
        for name in [name for name in environment if name.startswith("GLM_")]:
            del environment[name]
        environment.update(self.settings)
        return [self.python, "-m", "service"]
