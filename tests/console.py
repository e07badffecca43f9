"""The command lines of the documents: found in the pages, and typed into a shell as a person would."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent
PAGES = sorted(
    str(path.relative_to(CODE))
    for path in {
        *CODE.glob("*.md"),
        *(CODE / "docs").rglob("*.md"),
        *(CODE / f"{folder}/README.md" for folder in ("deploy/ansible", "tests/bench", "tests/clients")),
    }
)
"""The pages that have command lines, by their paths in the repository."""

_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_MARK = "=====command-line====="


@dataclass(frozen=True)
class Line:
    """One line to type. `is_root`: its prompt is `#`, and not `$`; the comment behind it is left out."""

    text: str
    is_root: bool


@dataclass(frozen=True)
class Typed:
    """What became of one line: its exit code, and what was printed (stdout and stderr)."""

    text: str
    code: int
    output: str


def lines(page: str) -> list[Line]:
    """Return the command lines of a page in their order: what stands behind a prompt in a fenced block `console`."""
    return [
        Line(re.split(r" {3,}", line[2:])[0].rstrip(), line[0] == "#")
        for block in _BLOCK.findall((CODE / page).read_text())
        for line in block.splitlines()
        if line.startswith(("$ ", "# "))
    ]


def script(typed: Sequence[str]) -> str:
    """Return what a shell reads from its stdin to run each of `typed`, also one that starts another shell.

    After a line its exit code is printed; the first that is not 0 ends the shell, and the shells around it. At the end
    it waits for what runs in the background.
    """
    after = 'code=$?; printf "\\n%s %s\\n" {mark} $code; [ $code -eq 0 ] || {{ cat > /dev/null; exit 1; }}\n'
    return "".join(f"{text}\n{after.format(mark=_MARK)}" for text in typed) + "wait\n"


def read(output: str, typed: Sequence[str]) -> list[Typed]:
    """Return what became of the lines of `script(typed)`; lines after one that failed are left out."""
    parts = re.split(rf"\n{_MARK} (\d+)\n", output)
    return [Typed(text, int(code), part) for text, part, code in zip(typed, parts[::2], parts[1::2], strict=False)]
