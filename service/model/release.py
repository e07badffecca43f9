"""A release directory: a checkpoint, its engine settings, and the checks that it must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from service.contract import checks, engine_settings, regular_file
from service.contract.checks import Check
from service.contract.engine_settings import EngineSettings

Progress = Callable[[str, float], None]
"""Called with the name of a step of a load and the completed share of it, 0.0 to 1.0."""


class ReleaseError(Exception):
    """The release cannot be served; the message gives the reason."""


class _ReleaseFile(BaseModel):
    version: str
    engine: dict[str, Any] = {}
    checks: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Release:
    """An immutable directory with a checkpoint under `model/`."""

    path: Path
    version: str
    engine: EngineSettings
    checks: tuple[Check, ...]

    @property
    def model(self) -> Path:
        """The checkpoint directory, in Hugging Face's format."""
        return self.path / "model"

    @classmethod
    def read(cls, path: Path) -> Release:
        """Read `release.json` of the release directory `path`; raises ReleaseError."""
        try:
            document = _ReleaseFile.model_validate_json(regular_file.read(path / "release.json"))
        except OSError as error:
            raise ReleaseError(f"{path} is not a release: {error.strerror}: release.json") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ReleaseError(f"{path}/release.json is invalid: {where}: {first['msg']}") from error
        try:
            settings = engine_settings.parse(document.engine)
            return cls(path, document.version, settings, checks.parse(document.checks))
        except ValueError as error:
            raise ReleaseError(f"{path}/release.json is invalid: {error}") from error
