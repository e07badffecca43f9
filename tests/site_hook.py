"""A hook of mkdocs: pages outside docs/ are part of the site, and links to other files of the repository become names.

In the repository the links lead to the files; a site has no files beside its pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
"""Pages of the root that are pages of the site, too."""
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root."""
    for name in PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Make links relative to the site; what is not in it is named instead, if the repository has it."""
    here = page.file.src_uri
    folder = "" if here in PAGES else posixpath.dirname(here)
    base = "" if here in PAGES else posixpath.join("docs", folder)

    def rewrite(link: re.Match[str]) -> str:
        text, (path, _, anchor) = link[1], link[2].partition("#")
        target = posixpath.normpath(posixpath.join(base, path))
        page_of_site = target if target in PAGES else target.removeprefix("docs/")
        if (target in PAGES or target.startswith("docs/")) and files.get_file_from_path(page_of_site):
            relative = posixpath.relpath(page_of_site, folder or ".")
            return f"[{text}]({relative}{'#' if anchor else ''}{anchor})"
        if (ROOT / target).exists():
            return text if text.startswith("`") or "/" not in text else f"`{text}`"
        return link[0]  # mkdocs reports it

    return _LINK.sub(rewrite, markdown)
