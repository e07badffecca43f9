"""A release directory: a checkpoint, its engine settings, and the checks that it must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.contract import checks
from service.contract.checks import Check

Progress = Callable[[str, float], None]
"""Called with the name of a step of a load and the completed share of it, 0.0 to 1.0."""


class ReleaseError(Exception):
    """The release cannot be served; the message gives the reason."""


class EngineSettings(BaseModel):
    """Settings of the engine for this release; the defaults suit GLM-4.6V-Flash.

    `rows`: requests that run at a time. `kv_tokens`: size of the KV cache that they share, in tokens (0: what the
    device's memory allows). `prefill_chunk`: prompt tokens computed in one step, in addition to one token of each
    running request. `image_cache_mib`: memory for cached image features.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_new_tokens: int = Field(default=1024, ge=1)
    rows: int = Field(default=64, ge=1, le=1024)
    kv_tokens: int = Field(default=0, ge=0)
    prefill_chunk: int = Field(default=512, ge=16)
    image_cache_mib: int = Field(default=256, ge=0)


class _ReleaseFile(BaseModel):
    version: str
    engine: EngineSettings = EngineSettings()
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
            document = _ReleaseFile.model_validate_json((path / "release.json").read_bytes())
        except OSError as error:
            raise ReleaseError(f"{path} is not a release: {error.strerror}: release.json") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ReleaseError(f"{path}/release.json is invalid: {where}: {first['msg']}") from error
        try:
            return cls(path, document.version, document.engine, checks.parse(document.checks))
        except ValueError as error:
            raise ReleaseError(f"{path}/release.json is invalid: {error}") from error
