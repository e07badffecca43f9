"""The file `$RUNTIME/<slot>/<generation>/successor.json`: what the next generation in place is started with."""

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


@dataclass(frozen=True)
class Successor:
    """An interpreter and GLM_* settings.

    A master that re-executes itself has the environment it was started with. The reload command runs in the unit's
    present environment and writes it down, so that new settings and new code apply to a reload too.
    """

    python: str
    settings: dict[str, str]

    @classmethod
    def of_this_process(cls) -> Successor:
        """Return the interpreter and settings of the calling process."""
        settings = {name: value for name, value in os.environ.items() if name.startswith("GLM_")}
        return cls(settings.get("GLM_PYTHON", sys.executable), settings)

    @classmethod
    def read(cls, directory: Path) -> Successor:
        """Read what a reload wrote for the generation in `directory`; without it (a bare USR2) that of this process."""
        with suppress(OSError, ValueError):
            return fields.from_json(cls, (directory / _NAME).read_bytes())
        return cls.of_this_process()

    def write(self, directory: Path) -> None:
        """Replace the file in `directory`; raises OSError."""
        atomic.write_text(directory / _NAME, json.dumps(asdict(self)))

    def enter(self, environment: dict[str, str]) -> list[str]:
        """Replace the GLM_* settings in `environment`; returns the command to execute."""
        for name in [name for name in environment if name.startswith("GLM_")]:
            del environment[name]
        environment.update(self.settings)
        return [self.python, "-m", "service"]
