"""httpx without its command line, which imports click and rich where they are installed: half of its import time."""

from __future__ import annotations

import sys

sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # its import fails, which httpx provides for

import httpx  # noqa: E402

__all__ = ["httpx"]
