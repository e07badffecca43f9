"""The number of tokens of long texts, counted in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from service.engine.protocol import Refused
from service.isolation.processes import Died, IsolatedProcesses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["TokenCounter", "begin"]

PROCESSES = 2  # one for each thread that prepares
MEMORY = 1 << 30  # bytes; a text of 1 MB took 310 MiB
SECONDS = 5  # of processor time; a text of 1 MB took 1.5 s
_SEPARATOR = "\n"


class TokenCounter:
    """Counts with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._processes = IsolatedProcesses(
            __name__,
            lambda: tokenizer.backend_tokenizer.to_str().encode(),
            count=PROCESSES,
            memory=MEMORY,
            seconds=SECONDS,
        )

    def count(self, texts: Sequence[str]) -> int:
        """Return how many tokens the texts have at least; blocks. Raises Refused if that takes too long."""
        try:
            # Templates may strip what they render.
            tokens = int(bytes(self._processes.call(_SEPARATOR.join(text.strip() for text in texts).encode())))
        except Died as error:
            raise Refused(f"the text cannot be tokenized: {error}") from error
        return max(0, tokens - len(texts))  # the separators are not a part of it

    def close(self) -> None:
        """End the processes."""
        self._processes.close()


def begin(setup: bytes) -> Callable[[bytes], bytes]:
    """Return the function that an isolated process calls with a text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(setup.decode())
    tokenizer.no_truncation()

    def answer(text: bytes) -> bytes:
        return str(len(tokenizer.encode(text.decode(), add_special_tokens=False))).encode()

    return answer
