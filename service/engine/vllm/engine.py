"""The engine as the service uses it, with vLLM behind it.

vLLM's client runs on an event loop of its own, in a thread that lives as long as the engine: a start, which blocks it,
does not hold up the service. Requests are prepared in the threads that both engines have.

If the core dies, answers go on with the next one: their tokens so far become a part of the prompt. A client notices a
pause. Only an answer that a grammar constrains, and that has begun, fails.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import abc
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from service.engine.mailbox import Dispatcher
from service.engine.protocol import Conversation, Delta, Finish, Limits, Priority, Sampling, Staged, Usage
from service.engine.sequence import Event
from service.engine.vllm.core import Core
from service.engine.vllm.llm import Backend
from service.engine.vllm.request import Answer, Request, Requests
from service.engine.vllm.rows import Rows
from service.fairness.client import NOBODY, Client
from service.fairness.pool import FairPool
from service.model import checkpoint as checkpoints
from service.model import checkpoint_files
from service.model.checkpoint_files import first_line
from service.model.release import Progress, Release, ReleaseError

__all__ = ["VllmEngine"]

PREPARE_THREADS = 3  # two of them for the requests of one address
_READ = 16 << 20  # bytes
_START_STALL = 600.0  # seconds that another core may take to start without another log line

T = TypeVar("T")


class VllmEngine:
    """vLLM on one device, or on several; see Engine."""

    def __init__(self, backend: Backend, release: Release, limits: Limits, directory: Path, memory: int) -> None:
        self._release, self._limits = release, limits
        self.version = release.version
        """The release whose weights it has."""
        self._memory = memory
        self._stats = backend.stats
        self._rows = Rows(release.engine.rows, limits.client_rows)
        self._dispatcher = Dispatcher()
        self._flushing = False
        self._running: set[Answer] = set()
        self._heartbeat = time.monotonic()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._core = Core(backend, release.model, directory)
        self._prepare_pool = FairPool(PREPARE_THREADS, "prepare")
        self._requests: Requests
        self._capacity = 0

    @classmethod
    def load(cls, release: Release, backend: Backend, *, limits: Limits, directory: Path, memory: int) -> VllmEngine:
        """Start vLLM with a release; blocks until it is ready. Raises ReleaseError.

        `directory`: of the slot, in which its processes are recorded. `memory`: bytes that it takes of its GPU.
        """
        companions = checkpoints.read_companions(release.model)
        engine = cls(backend, release, limits, directory, memory)
        try:
            engine._submit(engine._core.start()).result()
            config = engine._core.llm.vllm_config
            cache = config.cache_config
            engine._capacity = int(cache.num_gpu_blocks or 0) * int(cache.block_size)
            engine._requests = Requests(
                backend,
                companions,
                limits,
                context=int(config.model_config.max_model_len),
                vocabulary=int(config.model_config.get_vocab_size()),
                max_new_tokens=release.engine.max_new_tokens,
            )
        except BaseException:
            engine.close()
            raise
        engine._submit(engine._core.watch())
        return engine

    def warm_up(self, progress: Progress) -> None:
        """Run one text and one image request; blocks until both are finished. Raises ReleaseError."""
        from PIL import Image

        image = {"type": "image", "image": Image.new("RGB", (224, 224), "white")}
        progress("warming up", 0.0)
        contents: list[Any] = ["Hello", [image, {"type": "text", "text": "Hello"}]]
        try:
            for count, content in enumerate(contents):
                events: list[Event] = []
                messages = [{"role": "user", "content": content}]
                request = self._requests.prepare(messages, Sampling(max_tokens=4, temperature=0), None, (), "batch")
                self._submit(self._serve(request, events.append)).result()
                if events and isinstance(events[-1], BaseException):
                    raise events[-1]  # noqa: TRY301
                progress("warming up", (count + 1) / len(contents))
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ReleaseError(f"the warm-up requests failed: {type(error).__name__}: {reason}") from error

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
            raise RuntimeError("the engine is closed")
        request = await self._prepare_pool.run(
            client, self._requests.prepare, messages, sampling, thinking, tools, priority, client
        )
        del messages, tools  # the decoded images would stay in memory until the last token
        events: asyncio.Queue[Event] = asyncio.Queue()
        serving = self._submit(self._serve(request, self._dispatcher.sender(asyncio.get_running_loop(), events)))
        opens_thinking, length = request.prompt.think_open, request.prompt.length
        del request
        try:
            while True:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                if opens_thinking:
                    opens_thinking = False
                    yield Delta("<think>", tokens=0, prompt_tokens=length)
                yield event
                if isinstance(event, Finish):
                    return
        finally:
            serving.cancel()

    def read_weights(self, release: Release, progress: Progress) -> Mapping[str, Any]:
        """Read the files of a release once, so that they are in memory when vLLM reads them. Raises ReleaseError."""
        checkpoint_files.check(release.model, quantised=True)
        shards = checkpoint_files.shards(release.model)
        total, done = sum(shard.stat().st_size for shard in shards) or 1, 0
        for shard in shards:
            try:
                with safe_open(shard, framework="numpy"):
                    pass
                with shard.open("rb", buffering=0) as file:
                    while count := len(file.read(_READ)):
                        done += count
                        progress("reading", min(1.0, done / total))
            except (SafetensorError, OSError) as error:
                raise ReleaseError(f"{shard} cannot be read: {first_line(error)}") from error
        return {"model": release.model, "version": release.version}

    def stage_weights(self, weights: Mapping[str, Any], progress: Progress) -> Staged:
        """See WorkerEngine; vLLM reads the files itself."""
        progress("staging", 1.0)
        return Staged(weights, "page cache")

    async def replace_weights(self, weights: Mapping[str, Any]) -> None:
        """Replace the weights as soon as no request is running; later requests use the new ones."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        await asyncio.wrap_future(self._submit(self._replace(weights)))

    @property
    def memory(self) -> int:
        """See WorkerEngine."""
        return 0 if self._core.asleep else self._memory

    @property
    def can_sleep(self) -> bool:
        """See WorkerEngine: `enable_sleep_mode` is set, and vLLM's platform has it."""
        return bool(self._core.llm.vllm_config.model_config.enable_sleep_mode)

    async def sleep(self) -> None:
        """See WorkerEngine. Requests that come meanwhile wait for a row."""
        await asyncio.wrap_future(self._submit(self._sleep()))

    async def wake_up(self) -> None:
        """See WorkerEngine."""
        await asyncio.wrap_future(self._submit(self._wake_up()))

    @property
    def max_new_tokens(self) -> int:
        """See Engine."""
        return self._release.engine.max_new_tokens

    def check_size(self, messages: Conversation, tools: abc.Sequence[dict[str, Any]] = ()) -> int:
        """See Engine."""
        return self._requests.prompts.check_size(messages, tools)

    @property
    def context_length(self) -> int:
        """See Engine."""
        return self._requests.context

    def usage(self) -> Usage:
        """See Engine."""
        stats = self._stats
        return Usage(
            self._rows.running,
            self._rows.waiting,
            sum(answer.length for answer in list(self._running)),
            self._capacity,
            stats.steps,
            stats.step_sequences,
            stats.image_hits,
            stats.image_queries - stats.image_hits,
        )

    def answering(self) -> bool:
        """See Engine. While another core is started it has no steps, which its log lines stand for."""
        if self._closed or self._core.failed or not self._thread.is_alive():
            return not self._core.failed and self._thread.is_alive()
        silence = time.monotonic() - self._heartbeat
        if self._core.starting:
            return silence < self._limits.stall + _START_STALL
        return not self._running or silence < self._limits.stall

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """See Engine."""
        if self._closed:
            return
        self._closed = True
        self._prepare_pool.close()
        if hasattr(self, "_requests"):
            self._requests.close()
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        if not self._thread.is_alive():
            self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _end(self) -> None:
        self._core.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._dispatcher.flush(force=True)

    async def _serve(self, request: Request, emit: Callable[[Event], None]) -> None:
        """Compute the answer to a request on vLLM's loop; every outcome is an event."""

        def put(event: Event) -> None:
            self._heartbeat = time.monotonic()
            emit(event)
            if not self._flushing:  # once for all answers that have a token of this step
                self._flushing = True
                self._loop.call_soon(self._flush)

        try:
            async with self._rows.row(request.client, request.priority, self._limits.max_wait) as waited:
                answer = Answer(request, self._core, self._requests, put, waited)
                if not self._running:
                    self._heartbeat = time.monotonic()
                self._running.add(answer)
                try:
                    await answer.compute(self._limits.max_seconds)
                finally:
                    self._running.discard(answer)
        except asyncio.CancelledError:
            if self._closed:
                put(RuntimeError("the engine was closed"))
            raise
        except Exception as error:
            put(error)

    def _flush(self) -> None:
        self._flushing = False
        self._dispatcher.flush(force=True)

    async def _sleep(self) -> None:
        await self._drained()
        await self._core.sleep(self._limits.stall)

    async def _wake_up(self) -> None:
        await self._core.wake_up(self._limits.stall)
        self._rows.resume()

    async def _drained(self) -> None:
        """Give no rows any more, and wait until no request has one."""
        self._rows.pause()
        while self._rows.running:  # noqa: ASYNC110  (once for each swap)
            await asyncio.sleep(0.005)

    async def _replace(self, weights: Mapping[str, Any]) -> None:
        try:
            await self._drained()
            llm = self._core.llm
            await llm.pause_generation(mode="wait", clear_cache=True)
            try:
                self._core.model = weights["model"]
                await llm.collective_rpc("reload_weights", kwargs={"weights_path": str(weights["model"])})
                await llm.reset_prefix_cache()
                await llm.reset_mm_cache()
                await llm.reset_encoder_cache()
                self.version = weights["version"]
            finally:
                await llm.resume_generation()
        finally:
            self._rows.resume()
