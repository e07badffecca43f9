"""Trial of grammars in a process of its own: what kills that process is not compiled in this one.

llguidance 1.9 overflows the stack for a JSON schema with a chain of 3,000 references, and intersects regular
expressions without a limit.
What it compiles here, with less stack, memory and time than the worker has, it compiles there too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from service.engine.grammar_compiler import GrammarCompiler
from service.engine.protocol import Grammar, Refused
from service.isolation.processes import Died, IsolatedProcesses, Refusal

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["GrammarProbe", "InvalidGrammar", "begin", "check_size"]

SECONDS = 2  # of processor time; schemas of people take 1 to 50 ms
MEMORY = 512 << 20  # bytes; schemas of people take less than 20 MiB
PROCESSES = 3  # one for each thread that prepares, so that none waits for a process
STEP = 0.1  # seconds of processor time for one token, which all running requests wait for; usual are 0.1 to 10 ms
STEPS = 32  # tokens of a random output: some grammars are found too complex at the first tokens only
KNOWN = 4096  # verdicts that are remembered
MAX_REASON = 300  # characters: reasons quote the grammar

_OWN = ("it ", "the process ", "one token ")
_WORDS = {
    "NoExtension": "no output conforms to it",
    "regex parse error": "a pattern is no regular expression, or uses look-around or back-references",
    "invalid regex": "a pattern is no regular expression, or uses look-around or back-references",
    "not present in a registry": "a $ref refers to what is not in the schema",
    "does not exist": "a $ref refers to what is not in the schema",
    "Unsatisfiable": "no output conforms to it",
    "unknown special token": "the model has no tokens for calls of tools",
}

log = logging.getLogger("service")


class InvalidGrammar(Refused):
    """The JSON schema or another format of the grammar's field, or one of several there, cannot be compiled."""

    def __init__(self, reason: str, grammar: Grammar) -> None:
        super().__init__(f"the {grammar.kind} cannot be used: {_in_plain_words(reason)}", grammar.param)


def check_size(grammar: Grammar, limit: int) -> None:
    """Raise InvalidGrammar if a grammar has more characters."""
    if len(grammar.text) > limit:
        raise InvalidGrammar(f"it has {len(grammar.text)} characters; at most {limit} are allowed", grammar)


class GrammarProbe:
    """Tries grammars for one tokenizer, in processes that are started at the first; remembers the verdicts.

    `setup` returns the arguments of GrammarCompiler by name. `max_size` is the limit of a grammar, in characters.
    """

    def __init__(self, setup: Callable[[], dict[str, Any]], max_size: int) -> None:
        self._processes = IsolatedProcesses(
            __name__, lambda: json.dumps(setup()).encode(), count=PROCESSES, memory=MEMORY, seconds=SECONDS
        )
        self._max_size = max_size
        self._known: OrderedDict[bytes, str | None] = OrderedDict()  # why a grammar is refused, by its digest
        self._lock = threading.Lock()

    def check(self, grammar: Grammar) -> None:
        """Return if a grammar can be compiled here; raises InvalidGrammar, and OSError if no process can be started."""
        check_size(grammar, self._max_size)
        data = grammar.text.encode()
        digest = hashlib.blake2b(data).digest()
        with self._lock:
            known = digest in self._known
            reason = self._known.get(digest)
        if not known:
            reason = self._try(data)
            with self._lock:
                self._known[digest] = reason
                if len(self._known) > KNOWN:
                    self._known.popitem(last=False)
        if reason is not None:
            raise InvalidGrammar(reason, grammar)

    def close(self) -> None:
        """End the processes."""
        self._processes.close()

    def _try(self, grammar: bytes) -> str | None:
        try:
            self._processes.call(grammar)
        except Refusal as error:
            return str(error)
        except Died as error:
            return f"{error}; simplify it"
        return None


def _in_plain_words(reason: str) -> str:
    """Return why a schema cannot be used, for the client; what the compiler says otherwise is in the log."""
    if reason.startswith(_OWN):
        return reason
    for sign, words in _WORDS.items():
        if sign in reason:
            return words
    log.warning("a grammar cannot be compiled: %s", reason[:MAX_REASON])
    return "it is not valid, or uses what is not supported"


def begin(setup: bytes) -> Callable[[bytes], bytes]:
    """Return the function that an isolated process calls: it compiles a grammar and begins an output."""
    compiler = GrammarCompiler(**json.loads(setup))

    def answer(grammar: bytes) -> bytes:
        _walk(compiler.compile(grammar.decode()))
        return b""

    return answer


def _walk(matcher: LLMatcher) -> None:
    """Advance a matcher by random tokens that it allows; raises ValueError if it fails."""
    dice = random.Random(0)  # noqa: S311  (any output will do, and the same one for every process)
    for _ in range(STEPS):
        began = time.thread_time()
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if time.thread_time() - began > STEP:
            raise ValueError(f"one token of the output takes more than {STEP:g} s; simplify it")
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        if matcher.is_stopped() or not mask:
            return
        above = mask >> (skipped := dice.randrange(mask.bit_length()))
        matcher.consume_token(skipped + (above & -above).bit_length() - 1)
    if matcher.is_error():
        raise ValueError(matcher.get_error())
