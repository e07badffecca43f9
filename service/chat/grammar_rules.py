"""Rules of grammars in the compiler's dialect of Lark, for texts and regular expressions of clients.

What a client sends is quoted such that it cannot end the rule it is in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

__all__ = ["choice_rule", "quoted", "regex_rule"]

_ESCAPE_OR_DELIMITER = re.compile(r"\\(.)|[/\n\r]", re.DOTALL)


def quoted(text: str) -> str:
    """Return a text as a literal."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def choice_rule(name: str, texts: Iterable[str]) -> str:
    """Return the rule of one of several texts."""
    return f"{name}: {' | '.join(map(quoted, texts))}"


def regex_rule(name: str, pattern: str) -> str:
    """Return the rule of a text that a regular expression matches as a whole; raises ValueError if it ends early."""
    if not pattern or re.search(r"(?<!\\)(\\\\)*\\\Z", pattern):
        raise ValueError("a regular expression must not be empty or end with an escape")
    return f"{name}: /{_ESCAPE_OR_DELIMITER.sub(_escaped, pattern)}/"


def _escaped(found: re.Match[str]) -> str:
    """Return an escape of the pattern as it is, and a delimiter of the rule, escaped or not, by its number."""
    character = found[1] or found[0]
    return rf"\x{ord(character):02x}" if character in "/\n\r" else found[0]
