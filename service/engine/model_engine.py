"""The engine as the service uses it: one thread that steps, a pool that prepares requests, streams for asyncio.

It runs in a thread of the worker, not in a child process, so that there is only one kind of process to count, monitor
and replace. On two cores with a small model, where sharing the interpreter costs most, a child process gave 1.05 times
the tokens to 1 text client, 1.06 to 16 and 1.09 to 16 with images (tests/bench/engine_process.py); steps on a GPU
release the interpreter.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import abc
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

import torch

from service.contract.engine_settings import EngineSettings
from service.engine import memory, staging, tensors
from service.engine.core import Core
from service.engine.detokenizer import Detokenizer, OutputProcessor, StopStrings
from service.engine.grammar import Grammars
from service.engine.mailbox import Dispatcher, EngineCall
from service.engine.memory import MemoryShare
from service.engine.pace import Pace, gap_of
from service.engine.paged_cache import cache_for
from service.engine.prompt import PromptBuilder
from service.engine.protocol import Conversation, Delta, Finish, Limits, Priority, Refused, Sampling, Staged, Usage
from service.engine.runner import Runner
from service.engine.sampling_params import SamplingParams
from service.engine.sequence import Event, Sequence
from service.engine.tensors import Weights
from service.engine.vision import VisionEncoder
from service.fairness.client import NOBODY, Client
from service.fairness.pool import FairPool
from service.model import checkpoint as checkpoints
from service.model.checkpoint import Checkpoint
from service.model.release import Progress, Release, ReleaseError

__all__ = ["Limits", "ModelEngine"]

PREPARE_THREADS = 3  # two of them for the requests of one address
_ALL = MemoryShare()
_CAPTURED = 0.9  # part of the warm-up's progress that capturing steps is; a start without progress is ended
CAPTURE_SECONDS = 60.0
"""Time at the start after which no further shape of a step is captured; the others are when they first occur."""


class ModelEngine:
    """One model on one device; see Engine. A request is prepared, waits for a cache row, and is decoded."""

    def __init__(
        self, checkpoint: Checkpoint, settings: EngineSettings, limits: Limits, share: MemoryShare = _ALL
    ) -> None:
        model, processor = checkpoint.model, checkpoint.processor
        self._checkpoint, self._settings, self._limits = checkpoint, settings, limits
        self._model = model
        copy = memory.copy_of(model, settings)
        tokens = memory.cache_tokens(copy, model.device, share)
        try:
            cache = cache_for(model, tokens, rows=settings.rows, context=checkpoint.context_length)
        except ValueError as error:
            raise ReleaseError(str(error)) from error
        self.columns = cache.budget.columns
        self.memory = copy.with_cache(cache.budget.capacity) if model.device.type == "cuda" else 0
        self._core = Core(
            Runner(model, cache),
            processor.token_bytes,
            pace=Pace(settings.prefill_chunk, gap_of(settings.max_token_gap_ms, model.device.type), cache.least_chunk),
            client_rows=limits.client_rows,
        )
        self._prompt_builder = PromptBuilder(processor, model, min(limits.max_prompt_tokens, self.columns - 1))
        self._vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self._vision = VisionEncoder(model, cache_bytes=settings.image_cache_mib << 20)
        self._grammars = Grammars(
            processor.tokenizer,
            self._vocabulary,
            checkpoint.end_tokens,
            max_schema=limits.max_schema,
        )
        self._prepare_pool = FairPool(PREPARE_THREADS, "prepare")
        self._inbox: SimpleQueue[Sequence | EngineCall | None] = SimpleQueue()
        self._calls: list[EngineCall] = []
        self._dispatcher = Dispatcher()
        self._heartbeat = time.monotonic()
        self._busy = False
        self._closed = False
        self._lock = threading.Lock()  # nothing is put into the inbox after `_closed` is set
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def load(
        cls, release: Release, *, threads: int, limits: Limits, progress: Progress, share: MemoryShare = _ALL
    ) -> ModelEngine:
        """Load a release; blocks until it is in memory. If `threads` is 0, torch chooses their number.

        Raises ReleaseError.
        """
        checkpoint = checkpoints.load(release.model, release.engine, progress)
        if threads:
            torch.set_num_threads(threads)
        return cls(checkpoint, release.engine, limits, share)

    def warm_up(self, progress: Progress) -> None:
        """Run one text and one image request, since the first pass is slow; blocks until both are finished.

        Raises ReleaseError if the model or its chat template fails.
        """
        from PIL import Image

        image = {"type": "image", "image": Image.new("RGB", (224, 224), "white")}
        progress("warming up", 0.0)
        try:
            self._core.warm_up(CAPTURE_SECONDS, lambda share: progress("warming up", share * _CAPTURED))
            self._grammars.warm_up()
            contents: list[Any] = ["Hello", [image, {"type": "text", "text": "Hello"}]]
            for count, content in enumerate(contents):
                progress("warming up", _CAPTURED + (1 - _CAPTURED) * count / len(contents))
                events: SimpleQueue[Event] = SimpleQueue()
                sampling = Sampling(max_tokens=4, temperature=0)
                self._submit(
                    self._prepare([{"role": "user", "content": content}], sampling, None, (), "batch"), events.put
                )
                while not isinstance(event := events.get(), Finish):
                    if isinstance(event, BaseException):
                        raise event  # noqa: TRY301
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ReleaseError(f"the warm-up requests failed: {type(error).__name__}: {reason}") from error
        progress("warming up", 1.0)

    async def stream(
        self,
        messages: Conversation,
        sampling: Sampling,
        *,
        thinking: bool | None = None,
        tools: abc.Sequence[dict[str, Any]] = (),
        priority: Priority = "interactive",
        client: Client = NOBODY,
    ) -> AsyncIterator[Delta | Finish]:
        """See Engine."""
        if self._closed:
            raise RuntimeError("the engine is closed")  # the pool would raise a less clear error
        loop = asyncio.get_running_loop()
        sequence = await self._prepare_pool.run(
            client, self._prepare, messages, sampling, thinking, tools, priority, client
        )
        del messages, tools  # the decoded images would stay in memory until the last token
        events: asyncio.Queue[Event] = asyncio.Queue()
        self._submit(sequence, self._dispatcher.sender(loop, events))
        try:
            opens_thinking = sequence.prompt.think_open  # the tag is in the prompt; readers of the output need it
            while True:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                if opens_thinking:
                    opens_thinking = False
                    yield Delta("<think>", tokens=0, prompt_tokens=sequence.prompt.length)
                yield event
                if isinstance(event, Finish):
                    return
        finally:
            sequence.cancelled = True

    def read_weights(self, release: Release, progress: Progress) -> Weights:
        """Read the weights of a release of the same architecture; may be called in any thread. Raises ReleaseError."""
        weights = checkpoints.read_weights(release.model, release.engine, progress)
        tensors.require_match(self._model, weights)
        return weights

    def stage_weights(self, weights: Weights, progress: Progress) -> Staged:
        """See WorkerEngine."""
        return staging.stage(weights, staging.memory_of(self._model.device), progress)

    async def replace_weights(self, weights: Weights) -> None:
        """Replace the model's weights as soon as no request is running or waiting; later requests use the new ones.

        Cached image features are dropped. The KV cache needs no change: it holds data of running requests only.
        """
        call = EngineCall(lambda: self._vision.replace_weights(lambda: tensors.replace(self._model, weights)))
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._inbox.put(call)
        await asyncio.wrap_future(call.future)

    can_sleep = False
    """A swap loads the weights again, from the page cache."""

    async def sleep(self) -> None:
        """See WorkerEngine."""
        raise NotImplementedError

    async def wake_up(self) -> None:
        """See WorkerEngine."""
        raise NotImplementedError

    @property
    def max_new_tokens(self) -> int:
        """See Engine."""
        return self._settings.max_new_tokens

    def check_size(self, messages: Conversation, tools: abc.Sequence[dict[str, Any]] = ()) -> int:
        """See Engine."""
        return self._prompt_builder.check_size(messages, tools)

    @property
    def context_length(self) -> int:
        """See Engine."""
        return self.columns

    def usage(self) -> Usage:
        """See Engine."""
        images = {"image_hits": self._vision.reused, "image_misses": self._vision.computed}
        return replace(self._core.scheduler.usage, **images)

    def answering(self) -> bool:
        """See Engine."""
        if not self._thread.is_alive():
            return False
        return not self._busy or time.monotonic() - self._heartbeat < self._limits.stall

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """See Engine; blocks until the running step has ended, at most ten seconds."""
        with self._lock:
            self._closed = True
        self._grammars.close()
        self._prompt_builder.close()
        self._prepare_pool.close()  # requests still being prepared will raise in _submit
        self._inbox.put(None)
        self._thread.join(timeout=10)

    def _prepare(
        self,
        messages: Conversation,
        sampling: Sampling,
        thinking: bool | None,
        tools: abc.Sequence[dict[str, Any]],
        priority: Priority,
        client: Client = NOBODY,
    ) -> Sequence:
        """Build the sequence of a request; may be called in any thread."""
        if sampling.grammar:
            self._grammars.check(sampling.grammar)  # first: to build a prompt takes longer than to refuse it
        end, defaults = self._checkpoint.end_tokens, self._checkpoint.generation_config
        params = SamplingParams.resolve(sampling, defaults, vocabulary=self._vocabulary, end=end)
        prompt = self._prompt_builder.build(messages, thinking, tools)
        max_new_tokens = min(sampling.max_tokens or self._settings.max_new_tokens, self.columns - prompt.length)
        if sampling.min_tokens > max_new_tokens:
            raise Refused(
                f"min_tokens is {sampling.min_tokens}; the output can have at most {max_new_tokens} tokens",
                "min_tokens",
            )
        constraint = (
            self._grammars.compile(
                sampling.grammar, thinking=prompt.may_think and thinking is not False, is_open=prompt.think_open
            )
            if sampling.grammar
            else None
        )
        output = OutputProcessor(
            Detokenizer(self._checkpoint.processor.text),
            StopStrings(sampling.stop),
            end.union(sampling.stop_token_ids),
            min_tokens=sampling.min_tokens,
            prompt_tokens=prompt.length,
        )
        features = self._vision.features(prompt.images)
        return Sequence(
            prompt.without_images(),
            params,
            output,
            max_new_tokens,
            features=features,
            constraint=constraint,
            priority=priority,
            client=client,
            max_seconds=self._limits.max_seconds,
            queue_deadline=time.monotonic() + self._limits.max_wait if priority == "interactive" else float("inf"),
        )

    def _submit(self, sequence: Sequence, emit: Callable[[Event], None]) -> None:
        sequence.emit = emit
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            if not self._busy:
                self._heartbeat = time.monotonic()
            self._inbox.put(sequence)

    def _run(self) -> None:
        """Main loop of the engine thread: accept work, step, deliver events; ends when the engine is closed."""
        scheduler = self._core.scheduler
        while not self._closed:
            self._receive()
            self._core.step()
            self._heartbeat = time.monotonic()
            self._dispatcher.flush(force=not scheduler.busy)
            while self._calls and not scheduler.busy:
                self._calls.pop(0).run()
                self._heartbeat = time.monotonic()
            self._busy = scheduler.busy
        self._reject_all()

    def _receive(self) -> None:
        """Accept what is in the inbox; waits for an item if there is nothing to do.

        A variable of the main loop would hold the last item, with its image features or weights, until the next one.
        """
        with suppress(Empty):
            while item := self._inbox.get(block=not (self._core.scheduler.busy or self._calls)):
                self._busy = True
                self._accept(item)

    def _accept(self, item: Sequence | EngineCall) -> None:
        if isinstance(item, EngineCall):
            self._calls.append(item)
        else:
            self._core.scheduler.add(item)

    def _reject_all(self) -> None:
        """Fail everything that runs, waits or is still in the inbox."""
        with suppress(Empty):
            while True:
                if item := self._inbox.get_nowait():
                    self._accept(item)
        self._core.fail_all(RuntimeError("the engine was closed"))
        for call in self._calls:
            call.reject(RuntimeError("the engine was closed"))
        self._dispatcher.flush(force=True)
