"""The pages below docs/reference, and the manual page: written from the source by `make reference`.

`PAGES` has for each path, relative to the checkout, the function that returns its text. tests/test_reference.py
compares
the committed files with it.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.reference import api, cli, exit_codes, files, manual, memory, metrics, settings

__all__ = ["PAGES"]

PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/cli.md": cli.page,
    "docs/reference/exit-codes.md": exit_codes.page,
    "docs/reference/settings.md": settings.page,
    "docs/reference/files.md": files.page,
    "docs/reference/api.md": api.page,
    "docs/reference/metrics.md": metrics.page,
    "docs/reference/memory.md": memory.page,
    "docs/glmctl.1": manual.page,
}
