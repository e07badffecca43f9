"""What the next generation of a slot is started with."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_NAME = "heir.json"


@dataclass(frozen=True)
class Heir:
    """An interpreter and GLM_* settings.

    A master that re-executes itself knows only what it was born with. The reload runs in the unit's present one,
    so it writes down what that is: new settings and new code are met in place too.
    """

    python: str
    settings: dict[str, str]

    @classmethod
    def of_this_process(cls) -> Heir:
        """As the calling process was started."""
        settings = {name: value for name, value in os.environ.items() if name.startswith("GLM_")}
        return cls(settings.get("GLM_PYTHON", sys.executable), settings)

    @classmethod
    def read(cls, directory: Path) -> Heir:
        """As a reload wrote it for the generation in `directory`; for a bare USR2, like the present one."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((directory / _NAME).read_text()))
        return cls.of_this_process()

    def write(self, directory: Path) -> None:
        """Leave it for the generation in `directory`."""
        temporary = directory / f"{_NAME}.new"
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(directory / _NAME)

    def enter(self, environment: dict[str, str]) -> list[str]:
        """Put the settings into `environment` in place of those there; returns the command to execute."""
        for name in [name for name in environment if name.startswith("GLM_")]:
            del environment[name]
        environment.update(self.settings)
        return [self.python, "-m", "service"]
