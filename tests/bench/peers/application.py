"""The application that every peer serves: this service's own, with the engine that does without a model."""

from __future__ import annotations

import os
from pathlib import Path

from starlette.applications import Starlette

from service.app import create_app
from service.engine.dummy import DummyEngine
from service.engine.protocol import Limits
from service.identity import Identity
from service.model.release import Release
from service.settings import Settings

__all__ = ["RELEASE", "create"]

RELEASE = "BENCH_RELEASE"
"""The environment variable that names the release; a symlink is followed when a worker starts."""


def create() -> Starlette:
    """Return the application of the release that $BENCH_RELEASE names."""
    release = Release.read(Path(os.environ[RELEASE]).resolve())
    engine = DummyEngine.load(release, limits=Limits(), progress=lambda *_: None)
    settings = Settings(slot="blue")
    return create_app(engine, Identity(release.version, "blue", 1), settings, serving=lambda: True)
