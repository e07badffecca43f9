"""The reference of the files: what the modules of service/contract document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from service import contract
from tests.reference.markdown import GENERATED, table
from tests.reference.source import classes, docstring

__all__ = ["page"]


def page() -> str:
    """Return the page."""
    return (
        f"{GENERATED}\n# Files and sockets\n\nEvery format that the controller and the model server share is a "
        "module of "
        "`service/contract`. This page is what these modules say of themselves; [CONTRIBUTING.md](../../CONTRIBUTING.md"
        "#contracts) says in one place which file is where, who writes it, and what a reader may rely on.\n\n"
        "| | system | `--user` |\n|---|---|---|\n"
        "| `$ROOT` | `/srv/glm` | `$XDG_DATA_HOME/glm` |\n"
        "| `$RUNTIME` | `/run/glm` | `$XDG_RUNTIME_DIR/glm` |\n"
        "| `$STATE` | `/var/lib/glm` | `$XDG_STATE_HOME/glm` |\n" + "".join(_modules())
    )


def _modules() -> Iterator[str]:
    for path in sorted(Path(str(contract.__file__)).parent.glob("*.py")):
        if path.stem == "__init__":
            continue
        yield f"\n## {path.stem}\n\n{docstring(path)}\n"
        for one in classes(path):
            yield f"\n### {path.stem}.{one.name}\n\n{one.text}\n\n"
            rows = ((f"`{field.name}`", f"`{field.kind}`", field.text) for field in one.fields)
            yield table(("field", "type", "meaning"), rows)
