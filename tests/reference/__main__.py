"""Write the pages that are generated from the source: `python -m tests.reference`."""

from __future__ import annotations

from pathlib import Path

from tests.reference import PAGES

ROOT = Path(__file__).resolve().parent.parent.parent

for name, page in PAGES.items():
    path, text = ROOT / name, page()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
        print(f"wrote {name}")
