"""The engine: a conversation goes in, an answer comes out in pieces.

ModelEngine answers one conversation at a time, first come first served, with transformers' own `generate`. It is the
plain engine: what it says is the measure for any faster one.
"""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from service.checkpoint import Checkpoint, Progress
from service.checkpoint import load as load_checkpoint
from service.detokenizer import Answer, Detokenizer, StopStrings
from service.release import Release, ReleaseError

__all__ = ["Delta", "Engine", "Finish", "ModelEngine", "PromptTooLong", "Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token; None leaves it to the checkpoint's generation_config or the release."""

    max_tokens: int | None = None
    temperature: float | None = None  # 0: always the likeliest
    top_p: float | None = None
    top_k: int | None = None  # 0 and -1: all
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of the answer: whole characters, never empty."""

    text: str


@dataclass(frozen=True)
class Finish:
    """The end of an answer. `completion_tokens` counts the one that ended it."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


class PromptTooLong(ValueError):  # says more than an Error at its end would
    """The conversation, images included, is more than the engine takes; the text gives both numbers, in tokens."""


class Engine(Protocol):
    """What the routes need of an engine."""

    def stream(
        self, messages: list[dict[str, Any]], sampling: Sampling, *, thinking: bool | None = None
    ) -> AsyncIterator[Delta | Finish]:
        """Answer a conversation: Deltas, then one Finish; raises PromptTooLong.

        A message is `{"role", "content"}`; the content a string, or parts `{"type": "text", "text"}` and
        `{"type": "image", "image": PIL.Image}`. Closing the iterator, or cancelling who awaits it, ends the generation
        within a step or two.
        """
        ...

    def answering(self) -> bool:
        """Tell whether the engine lives: False when it has work and has given no sign for too long."""
        ...

    def close(self) -> None:
        """End all work; streams that are not finished raise RuntimeError."""
        ...


Item = Delta | Finish | BaseException


@dataclass(frozen=True)
class _Job:
    messages: list[dict[str, Any]]
    sampling: Sampling
    thinking: bool | None
    emit: Callable[[Item], None]
    cancelled: threading.Event


class ModelEngine:
    """One model, one thread that runs it, one queue before it."""

    def __init__(self, checkpoint: Checkpoint, *, max_new_tokens: int, max_prompt_tokens: int, stall: float) -> None:
        self._checkpoint = checkpoint
        self._max_new_tokens = max_new_tokens
        self._max_prompt_tokens = min(max_prompt_tokens, checkpoint.context - 1)
        self._stall = stall
        self._longest_token = max(map(len, checkpoint.processor.tokenizer.get_vocab()))
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._jobs = 0  # waiting and running
        self._closed = threading.Event()
        self._sign = time.monotonic()
        # transformers fills what a request's own settings leave open from here: nothing must be left to fill in
        from transformers import GenerationConfig

        checkpoint.model.generation_config = GenerationConfig(eos_token_id=sorted(checkpoint.end))
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def load(
        cls, release: Release, *, threads: int, stall: float, max_prompt_tokens: int, progress: Progress
    ) -> ModelEngine:
        """Load a release and block until it is in memory; `threads` of 0 leaves their number to torch.

        `stall` is in seconds. Raises ReleaseError.
        """
        checkpoint = load_checkpoint(release.model, release.engine, progress)
        if threads:
            import torch

            torch.set_num_threads(threads)
        return cls(
            checkpoint,
            max_new_tokens=release.engine.max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            stall=stall,
        )

    def warm_up(self, progress: Progress) -> None:
        """Answer one text and one image, and block until that is done: the first pass is the slow one.

        Raises ReleaseError if the model or its chat template fails at it.
        """
        from PIL import Image

        picture = {"type": "image", "image": Image.new("RGB", (224, 224), "white")}
        warm: list[Any] = ["Hello", [picture, {"type": "text", "text": "Hello"}]]
        for count, content in enumerate(warm):
            progress("warming up", count / len(warm))
            items: SimpleQueue[Item] = SimpleQueue()
            self._submit([{"role": "user", "content": content}], Sampling(max_tokens=4, temperature=0), None, items.put)
            while not isinstance(item := items.get(), Finish):
                if isinstance(item, BaseException):
                    reason = " ".join(str(item).split())[:300]
                    raise ReleaseError(f"the model cannot answer: {type(item).__name__}: {reason}") from item
        progress("warming up", 1.0)

    async def stream(
        self, messages: list[dict[str, Any]], sampling: Sampling, *, thinking: bool | None = None
    ) -> AsyncIterator[Delta | Finish]:
        """See Engine."""
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Item] = asyncio.Queue()

        def emit(item: Item) -> None:
            loop.call_soon_threadsafe(items.put_nowait, item)

        job = self._submit(messages, sampling, thinking, emit)
        try:
            while True:
                item = await items.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if isinstance(item, Finish):
                    return
        finally:
            job.cancelled.set()

    def answering(self) -> bool:
        """See Engine."""
        if not self._thread.is_alive():
            return False
        return not self._jobs or time.monotonic() - self._sign < self._stall

    def close(self) -> None:
        """See Engine; blocks until the running step is over, ten seconds at most."""
        with self._lock:
            self._closed.set()
            self._queue.put(None)
        self._thread.join(timeout=10)

    def _submit(
        self,
        messages: list[dict[str, Any]],
        sampling: Sampling,
        thinking: bool | None,
        emit: Callable[[Item], None],
    ) -> _Job:
        job = _Job(messages, sampling, thinking, emit, threading.Event())
        with self._lock:
            if self._closed.is_set():
                raise RuntimeError("the engine is closed")
            if not self._jobs:
                self._sign = time.monotonic()
            self._jobs += 1
            self._queue.put(job)
        return job

    def _work(self) -> None:
        """Run in the engine's thread: one job after the other until None comes."""
        while job := self._queue.get():
            self._sign = time.monotonic()
            try:
                if self._closed.is_set():
                    raise RuntimeError("the engine is closed")  # noqa: TRY301
                if not job.cancelled.is_set():
                    self._answer(job)
            except BaseException as error:
                self._emit(job, error)
            finally:
                with self._lock:
                    self._jobs -= 1

    def _emit(self, job: _Job, item: Item) -> None:
        try:
            job.emit(item)
        except RuntimeError:  # the loop that asked is closed
            job.cancelled.set()

    def _answer(self, job: _Job) -> None:
        import torch

        model, processor = self._checkpoint.model, self._checkpoint.processor
        inputs = self._inputs(job)
        prompt = int(inputs["input_ids"].shape[1])
        limit = min(job.sampling.max_tokens or self._max_new_tokens, self._checkpoint.context - prompt)
        if job.sampling.seed is None:
            torch.seed()
        else:
            torch.manual_seed(job.sampling.seed)
        answer = Answer(
            Detokenizer(processor.text),
            StopStrings(job.sampling.stop),
            self._checkpoint.end,
        )

        def step(tokens: Any, _scores: Any, **_: Any) -> Any:
            """Stand in for a StoppingCriteria: called after every token, and True ends it."""
            self._sign = time.monotonic()
            ended = job.cancelled.is_set() or self._closed.is_set()
            if not ended:
                if text := answer.push(int(tokens[0, -1])):
                    self._emit(job, Delta(text))
                ended = answer.ended
            return torch.full((tokens.shape[0],), ended, dtype=torch.bool, device=tokens.device)

        with torch.inference_mode():
            model.generate(**inputs, generation_config=self._generation(job.sampling, limit), stopping_criteria=[step])
        if self._closed.is_set():
            raise RuntimeError("the engine was closed")
        if job.cancelled.is_set():
            return
        if text := answer.rest():
            self._emit(job, Delta(text))
        self._emit(job, Finish("stop" if answer.ended else "length", prompt, answer.tokens))

    def _inputs(self, job: _Job) -> Any:
        """Prepare the prompt; whatever is surely too long is refused before the work of preparing it."""
        parts = [part for message in job.messages for part in _parts(message["content"])]
        limit, processor = self._max_prompt_tokens, self._checkpoint.processor
        images = processor.image_tokens(part["image"].size for part in parts if part["type"] == "image")
        text = sum(len(part["text"]) for part in parts if part["type"] == "text") // self._longest_token
        if images + text > limit:
            raise PromptTooLong(f"the conversation has {images + text} tokens or more; at most {limit} are allowed")
        inputs = processor.inputs(job.messages, job.thinking)
        prompt = int(inputs["input_ids"].shape[1])
        if prompt > limit:
            raise PromptTooLong(f"the conversation has {prompt} tokens, images included; at most {limit} are allowed")
        return inputs.to(self._checkpoint.model.device)

    def _generation(self, sampling: Sampling, limit: int) -> Any:
        generation = copy.deepcopy(self._checkpoint.generation)
        generation.eos_token_id = sorted(self._checkpoint.end)
        if generation.pad_token_id is None:
            generation.pad_token_id = generation.eos_token_id[0]
        generation.max_length, generation.max_new_tokens = None, limit
        if sampling.temperature is not None:
            generation.do_sample = sampling.temperature > 0
            generation.temperature = sampling.temperature
        if sampling.top_p is not None:
            generation.top_p = sampling.top_p
        if sampling.top_k is not None:
            generation.top_k = max(sampling.top_k, 0)
        if not generation.do_sample:  # else transformers warns that they have no effect
            generation.temperature = generation.top_p = generation.top_k = None
        return generation


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or []
