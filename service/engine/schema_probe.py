"""Trial of JSON schemas in a process of its own: what kills that process is not compiled in this one.

llguidance 1.9 overflows the stack for a chain of 3,000 references, and intersects regular expressions without a limit.
What it compiles here, with less stack, memory and time than the worker has, it compiles there too.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from service.engine.protocol import Refused
from service.engine.schema_compiler import SchemaCompiler
from service.isolation.processes import Died, IsolatedProcesses, Refusal

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["InvalidSchema", "SchemaProbe", "begin", "check_size"]

SECONDS = 2  # of processor time; schemas of people take 1 to 50 ms
MEMORY = 512 << 20  # bytes; schemas of people take less than 20 MiB
PROCESSES = 3  # one for each thread that prepares, so that none waits for a process
STEP = 0.1  # seconds of processor time for one token, which all running requests wait for; usual are 0.1 to 10 ms
STEPS = 32  # tokens of a random output: some grammars are found too complex at the first tokens only
KNOWN = 4096  # verdicts that are remembered
MAX_REASON = 300  # characters: reasons quote the schema


class InvalidSchema(Refused):
    """The schema of response_format cannot be compiled."""

    param = "response_format"

    def __init__(self, reason: str) -> None:
        reason = "no output conforms to it" if reason.startswith("NoExtension") else reason.partition("\n")[0]
        super().__init__(f"the JSON schema cannot be used: {reason[:MAX_REASON]}")


def check_size(schema: str, limit: int) -> None:
    """Raise InvalidSchema if a schema has more characters."""
    if len(schema) > limit:
        raise InvalidSchema(f"it has {len(schema)} characters; at most {limit} are allowed")


class SchemaProbe:
    """Tries schemas for one tokenizer, in processes that are started at the first; remembers the verdicts.

    `setup` returns the arguments of SchemaCompiler by name. `max_size` is the limit of a schema, in characters.
    """

    def __init__(self, setup: Callable[[], dict[str, Any]], max_size: int) -> None:
        self._processes = IsolatedProcesses(
            __name__, lambda: json.dumps(setup()).encode(), count=PROCESSES, memory=MEMORY, seconds=SECONDS
        )
        self._max_size = max_size
        self._known: OrderedDict[bytes, str | None] = OrderedDict()  # why a schema is refused, by its digest
        self._lock = threading.Lock()

    def check(self, schema: str) -> None:
        """Return if a schema can be compiled here; raises InvalidSchema, and OSError if no process can be started."""
        check_size(schema, self._max_size)
        data = schema.encode()
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
            raise InvalidSchema(reason)

    def close(self) -> None:
        """End the processes."""
        self._processes.close()

    def _try(self, schema: bytes) -> str | None:
        try:
            self._processes.call(schema)
        except Refusal as error:
            return str(error)
        except Died as error:
            return f"{error}; simplify it"
        return None


def begin(setup: bytes) -> Callable[[bytes], bytes]:
    """Return the function that an isolated process calls: it compiles a schema and begins an output."""
    compiler = SchemaCompiler(**json.loads(setup))

    def answer(schema: bytes) -> bytes:
        _walk(compiler.compile(schema.decode()))
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
