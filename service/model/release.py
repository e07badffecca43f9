"""A release as the server reads it: the checkpoint, its engine settings and the checks it must pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.contract import checks
from service.contract.checks import Check


class ReleaseError(Exception):
    """The release on disk cannot be served; the text says why."""


class EngineSettings(BaseModel):
    """How the engine runs this release; everything has a default that suits the real model.

    `rows` are the requests answered at a time, `kv_tokens` the tokens of cache they share (0: as many as the device's
    memory allows), `prefill_chunk` the prompt tokens that one step takes in beside the running answers,
    `image_cache_mib` the memory for the features of pictures seen before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_new_tokens: int = Field(default=1024, ge=1)
    rows: int = Field(default=64, ge=1, le=1024)
    kv_tokens: int = Field(default=0, ge=0)
    prefill_chunk: int = Field(default=512, ge=16)
    image_cache_mib: int = Field(default=256, ge=0)


class _Document(BaseModel):
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
        """The checkpoint as Hugging Face writes it."""
        return self.path / "model"

    @classmethod
    def read(cls, path: Path) -> Release:
        """Read `release.json` of the release directory `path`; raises ReleaseError."""
        try:
            document = _Document.model_validate_json((path / "release.json").read_bytes())
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
