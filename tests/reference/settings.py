"""The reference of the settings: service/settings.py, engine_settings.py, and glm.toml."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from deploy.policy import Policy
from service.contract import engine_settings
from service.contract.devices import Devices
from service.contract.memory_policy import MemoryPolicy
from service.settings import Settings
from tests.reference.markdown import GENERATED, table
from tests.reference.source import Field, classes

__all__ = ["page"]


def page() -> str:
    """Return the page."""
    engine = next(one for one in classes(Path(engine_settings.__file__)) if one.name == "EngineSettings")
    return (
        f"{GENERATED}\n# Settings\n\n"
        "## Of the host\n\nLines `GLM_NAME=value` in `/etc/glm/glm.env` (`~/.config/glm/glm.env` with `--user`), read "
        "when a generation starts: `glmctl reload` applies a change. Times are in seconds, sizes in bytes. "
        "SECURITY.md says what the bounds are for.\n\n"
        f"{table(('variable', 'default', 'meaning'), _variables())}"
        "\n## Of a release\n\n`engine.json` beside the checkpoint, or `glmctl release add --engine FILE`.\n\n"
        f"{table(('key', 'type', 'default', 'meaning'), (_row(field) for field in engine.fields))}"
        "\n## Policy\n\nTables of `/etc/glm/glm.toml` (`~/.config/glm/glm.toml` with `--user`), read by `glmctl` at "
        "each rollout; `[devices]` and `[memory]` also by the service when a slot starts.\n\n"
        f"{table(('table', 'key', 'default', 'meaning'), _policy())}"
    )


def _variables() -> Iterator[tuple[str, str, str]]:
    for name, field in Settings.model_fields.items():
        default = "*required*" if field.is_required() else f"`{_text(field.default)}`"
        yield f"`GLM_{name.upper()}`", default, field.description or ""


def _row(field: Field) -> tuple[str, str, str, str]:
    return f"`{field.name}`", f"`{field.kind}`", f"`{field.default}`" if field.default else "", field.text


def _policy() -> Iterator[tuple[str, str, str, str]]:
    texts_of_tables = {"memory": MemoryPolicy, "devices": Devices}
    for name, part in Policy.model_fields.items():
        kind = part.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            texts = {
                key.name: key.text for one in classes(_module(kind)) if one.name == kind.__name__ for key in one.fields
            }
            for key, field in kind.model_fields.items():
                text = field.description or texts.get(key, "")
                default = "" if field.is_required() else f"`{_text(field.get_default(call_default_factory=True))}`"
                yield f"`[{name}]`", f"`{key}`", default, text
        else:
            kind = texts_of_tables[name]
            yield f"`[{name}]`", "", "", inspect.getdoc(kind) or ""
            for one in classes(_module(kind)):
                if one.name == kind.__name__:
                    yield from ((f"`[{name}]`", f"`{key.name}`", f"`{key.default}`", key.text) for key in one.fields)


def _module(kind: type) -> Path:
    return Path(str(sys.modules[kind.__module__].__file__))


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
