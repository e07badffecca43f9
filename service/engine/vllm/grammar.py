"""Grammars as vLLM takes them: of the whole output, with what may precede what a request asks for.

With the native engine, `service.engine.grammar.Constraint` lets reasoning and the text before a call of a tool pass.
"""

from __future__ import annotations

import re

from service.engine.protocol import Grammar

__all__ = ["complete"]

_FREE = "free_text: /(?s:.*)/"
_START = re.compile(r"^start:", re.MULTILINE)


def complete(grammar: Grammar, *, thinking: bool, is_open: bool) -> str:
    """Return the grammar of a whole output.

    `thinking`: reasoning may come first, unless the grammar names the token that it begins after. `is_open`: the prompt
    ends within reasoning.
    """
    if grammar.after is None and not thinking:
        return grammar.text
    text = _START.sub("constrained_part:", grammar.text)
    if grammar.after is not None:
        start = f"start: free_text | free_text {grammar.after} constrained_part"
    elif is_open:
        start = "start: free_text </think> constrained_part"
    else:
        start = 'start: constrained_part | "\\n"? <think> free_text </think> constrained_part'
    return f"{start}\n{_FREE}\n{text}"
