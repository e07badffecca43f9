"""The engine as the service uses it: a thread that steps, threads that prepare, and streams that asyncio reads.

A thread and not a process: the worker is what dies, is counted, is watched and is replaced, and an engine in a child
of its own would be a second such thing. On two cores with a small model, where sharing an interpreter costs most, the
child gave 1.05 times the tokens to 1 text client, 1.06 to 16 and 1.09 to 16 with pictures (tests/bench/hosting.py); the
steps of a GPU leave the interpreter alone.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from service.engine import tensors
from service.engine.cache import Budget, SlotCache
from service.engine.core import Core
from service.engine.detokenizer import Answer, Detokenizer, StopStrings
from service.engine.errand import Errand
from service.engine.grammar import Grammars
from service.engine.outbox import Outbox
from service.engine.prompt import Writer
from service.engine.protocol import Delta, Finish, Priority, Sampling, Usage
from service.engine.runner import Runner
from service.engine.sampler import Choice
from service.engine.sequence import Event, Sequence
from service.engine.tensors import State
from service.engine.vision import Vision
from service.model.checkpoint import Checkpoint, Progress
from service.model.checkpoint import load as load_checkpoint
from service.model.checkpoint import tensors as read_tensors
from service.model.release import EngineSettings, Release, ReleaseError

__all__ = ["Limits", "ModelEngine"]

PREPARING = 2  # requests whose prompts are written and whose pictures are looked at, at the same time


@dataclass(frozen=True)
class Limits:
    """What one request may take. Times are in seconds; `stall`: silence after which a busy engine counts as hung."""

    prompt_tokens: int = 32_768
    wait: float = 60.0
    seconds: float = 600.0
    stall: float = 120.0


class ModelEngine:
    """One model on one device. See Engine for what it does; a request is prepared, waits for a row, and is answered."""

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings, limits: Limits) -> None:
        model, processor = checkpoint.model, checkpoint.processor
        self._checkpoint, self._settings, self._limits = checkpoint, settings, limits
        self._model = model
        try:
            budget = Budget.of(model, rows=settings.rows, kv_tokens=settings.kv_tokens, context=checkpoint.context)
        except ValueError as error:
            raise ReleaseError(str(error)) from error
        self.columns = budget.columns
        self._core = Core(Runner(model, SlotCache(model, budget)), processor.spell, chunk=settings.prefill_chunk)
        self._writer = Writer(processor, model, min(limits.prompt_tokens, budget.columns - 1))
        self._vision = Vision(model, cache_bytes=settings.image_cache_mib << 20)
        self._grammars = Grammars(
            processor.tokenizer, int(model.get_output_embeddings().weight.shape[0]), checkpoint.end
        )
        self._preparing = ThreadPoolExecutor(PREPARING, "prepare")
        self._inbox: SimpleQueue[Sequence | Errand | None] = SimpleQueue()
        self._errands: list[Errand] = []
        self._outbox = Outbox()
        self._sign = time.monotonic()
        self._busy = False
        self._closed = False
        self._lock = threading.Lock()  # whoever is in the inbox before it closes is answered, if only with an error
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, release: Release, *, threads: int, limits: Limits, progress: Progress) -> ModelEngine:
        """Load a release and block until it is in memory; `threads` of 0 leaves their number to torch.

        Raises ReleaseError.
        """
        checkpoint = load_checkpoint(release.model, release.engine, progress)
        if threads:
            import torch

            torch.set_num_threads(threads)
        return cls(checkpoint, release.engine, limits)

    def warm_up(self, progress: Progress) -> None:
        """Answer one text and one image, and block until that is done: the first pass is the slow one.

        Raises ReleaseError if the model or its chat template fails at it.
        """
        from PIL import Image

        picture = {"type": "image", "image": Image.new("RGB", (224, 224), "white")}
        progress("warming up", 0.0)
        try:
            self._core.warm_up()
            warm: list[Any] = ["Hello", [picture, {"type": "text", "text": "Hello"}]]
            for count, content in enumerate(warm):
                progress("warming up", count / len(warm))
                events: SimpleQueue[Event] = SimpleQueue()
                asked = Sampling(max_tokens=4, temperature=0)
                self._submit(
                    self._sequence([{"role": "user", "content": content}], asked, None, (), "batch"), events.put
                )
                while not isinstance(event := events.get(), Finish):
                    if isinstance(event, BaseException):
                        raise event  # noqa: TRY301
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ReleaseError(f"the model cannot answer: {type(error).__name__}: {reason}") from error
        progress("warming up", 1.0)

    async def stream(
        self,
        messages: list[dict[str, Any]],
        sampling: Sampling,
        *,
        thinking: bool | None = None,
        tools: Many[dict[str, Any]] = (),
        priority: Priority = "interactive",
    ) -> AsyncIterator[Delta | Finish]:
        """See Engine."""
        if self._closed:
            raise RuntimeError("the engine is closed")  # and so are the threads that prepare
        loop = asyncio.get_running_loop()
        sequence = await loop.run_in_executor(
            self._preparing, self._sequence, messages, sampling, thinking, tools, priority
        )
        events: asyncio.Queue[Event] = asyncio.Queue()
        self._submit(sequence, self._outbox.to(loop, events))
        try:
            if sequence.prompt.opened:
                yield Delta("<think>")  # the template wrote it, and who reads the answer must know
            while True:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Finish):
                    return
        finally:
            sequence.cancelled = True

    def read(self, release: Release, progress: Progress) -> State:
        """Read the weights of a release of the same architecture, in any thread; raises ReleaseError."""
        state = read_tensors(release.model, release.engine, progress)
        tensors.require_fit(self._model, state)
        return state

    async def put(self, state: State) -> None:
        """Give the model other weights, between steps and once nobody is being answered; who asks next meets them.

        Pictures seen before are forgotten. Keys and values need no word: they are of requests, and there are none.
        """
        errand = Errand(lambda: self._vision.renew(lambda: tensors.put(self._model, state)))
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._inbox.put(errand)
        await asyncio.wrap_future(errand.done)

    def usage(self) -> Usage:
        """See Engine."""
        return self._core.scheduler.usage

    def answering(self) -> bool:
        """See Engine."""
        if not self._thread.is_alive():
            return False
        return not self._busy or time.monotonic() - self._sign < self._limits.stall

    @property
    def closed(self) -> bool:
        """Whether it takes nothing on any more."""
        return self._closed

    def close(self) -> None:
        """See Engine; blocks until the running step is over, ten seconds at most."""
        with self._lock:
            self._closed = True
        self._preparing.shutdown(wait=False)  # who is still in there will find the engine closed
        self._inbox.put(None)
        self._thread.join(timeout=10)

    def _sequence(
        self,
        messages: list[dict[str, Any]],
        sampling: Sampling,
        thinking: bool | None,
        tools: Many[dict[str, Any]],
        priority: Priority,
    ) -> Sequence:
        """Prepare a request, in any thread."""
        prompt = self._writer.write(messages, thinking, tools)
        constraint = (
            self._grammars.constraint(sampling.json_schema, thinking=prompt.thinking and thinking is not False)
            if sampling.json_schema
            else None
        )
        return Sequence(
            prompt,
            Choice.of(sampling, self._checkpoint.generation),
            Answer(Detokenizer(self._checkpoint.processor.text), StopStrings(sampling.stop), self._checkpoint.end),
            min(sampling.max_tokens or self._settings.max_new_tokens, self.columns - prompt.tokens),
            features=self._vision.features(prompt.pictures),
            constraint=constraint,
            priority=priority,
            seconds=self._limits.seconds,
            wait_until=time.monotonic() + self._limits.wait if priority == "interactive" else float("inf"),
        )

    def _submit(self, sequence: Sequence, emit: Callable[[Event], None]) -> None:
        sequence.emit = emit
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            if not self._busy:
                self._sign = time.monotonic()
            self._inbox.put(sequence)

    def _work(self) -> None:
        """Run in the engine's thread until it is closed: take in who came, step, tell what was said."""
        scheduler = self._core.scheduler
        while not self._closed:
            with suppress(Empty):
                while came := self._inbox.get(block=not (scheduler.busy or self._errands)):
                    self._busy = True
                    self._take(came)
            self._core.step()
            self._sign = time.monotonic()
            self._outbox.send(hurry=not scheduler.busy)
            while self._errands and not scheduler.busy:
                self._errands.pop(0).run()
                self._sign = time.monotonic()
            self._busy = scheduler.busy
        self._end()

    def _take(self, came: Sequence | Errand) -> None:
        if isinstance(came, Errand):
            self._errands.append(came)
        else:
            self._core.scheduler.add(came)

    def _end(self) -> None:
        with suppress(Empty):
            while True:
                if came := self._inbox.get_nowait():
                    self._take(came)
        self._core.fail_all(RuntimeError("the engine was closed"))
        for errand in self._errands:
            errand.refuse(RuntimeError("the engine was closed"))
        self._outbox.send(hurry=True)
