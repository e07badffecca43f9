"""The reference of the exit codes: those in `glmctl --help`, with the errors of deploy/errors.py that have them."""

from __future__ import annotations

import inspect
import re

from deploy import errors
from deploy.cli import glmctl
from tests.reference.markdown import GENERATED, table

__all__ = ["page"]


def page() -> str:
    """Return the page."""
    listed = dict(re.findall(r"^ +(\d+)  (.+)$", inspect.cleandoc(glmctl.help or ""), re.MULTILINE))
    listed.setdefault("130", "interrupted by Ctrl-C, SIGTERM or SIGHUP")
    found: dict[str, list[str]] = {code: [] for code in listed}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.GlmError):
            found[str(kind.exit_code)].append(f"`{name}`: {(inspect.getdoc(kind) or '').splitlines()[0]}")
    rows = [
        (f"[{code}](../runbook.md#exit-code-{code})", meaning, "<br>".join(found[code]))
        for code, meaning in sorted(listed.items(), key=lambda item: int(item[0]))
    ]
    return (
        f"{GENERATED}\n# Exit codes\n\nOf `glmctl`, all verbs. The link leads to what to do. With `--json` an error is "
        "a document `error` with `message`, `hint` and `exit_code`.\n\n"
        f"{table(('code', 'meaning', 'errors'), rows)}"
    )
