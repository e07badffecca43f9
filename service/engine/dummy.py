"""An engine without a model, for tests of rollouts, crashes, hooks and the command line. GLM_ENGINE=dummy selects it.

It imports neither torch nor transformers, so a worker is ready in a fraction of a second. An answer is a sequence of
words that depends on the bytes of the checkpoint and on the messages: equal releases answer alike, others do not.
"""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.engine import prompt_size
from service.engine.protocol import (
    Conversation,
    Delta,
    Finish,
    Limits,
    Priority,
    PromptTooLong,
    QueueTimeout,
    Refused,
    Sampling,
    Staged,
    TokenLogprob,
    Usage,
)
from service.fairness.client import NOBODY, Client
from service.fairness.shares import Shares
from service.model import checkpoint_files
from service.model.release import Progress, Release, ReleaseError

__all__ = ["DummyEngine"]

TOKEN_SECONDS = 0.002  # between two words of an answer
IMAGE_TOKENS = 64
MAX_NEW_TOKENS = 1 << 20  # of one answer
ROW_TOKENS = 4096  # of cache, reported for each row
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "larch")


@dataclass(eq=False)
class _Turn:
    """A request that waits for a row, or has one."""

    client: Client
    came: asyncio.Event = field(default_factory=asyncio.Event)


class DummyEngine:
    """Engine whose words come from a checksum. Of a Sampling it uses max_tokens, seed and logprobs, which are 0."""

    def __init__(self, checksum: int, release: Release, limits: Limits) -> None:
        self._checksum = checksum
        self.memory = 0
        self.max_new_tokens = release.engine.max_new_tokens
        self._capacity = release.engine.rows * ROW_TOKENS
        self._rows = release.engine.rows
        self._limits = limits
        self._running: list[_Turn] = []
        self._waiting: list[_Turn] = []
        self._promised = 0
        self._closed = False
        self.can_sleep = bool(release.engine.vllm.get("enable_sleep_mode"))
        self._asleep = False

    @classmethod
    def load(cls, release: Release, *, limits: Limits, progress: Progress) -> DummyEngine:
        """Read the checkpoint's files without loading a model; raises ReleaseError for those that are damaged."""
        return cls(_checksum(release.model, progress), release, limits)

    def warm_up(self, progress: Progress) -> None:
        """Do nothing."""
        progress("warming up", 1.0)

    async def stream(
        self,
        messages: Conversation,
        sampling: Sampling,
        *,
        thinking: bool | None = None,  # noqa: ARG002
        tools: Sequence[dict[str, Any]] = (),
        priority: Priority = "interactive",
        client: Client = NOBODY,
    ) -> AsyncIterator[Delta | Finish]:
        """See Engine. Rows are given to clients in turn, whatever the priority."""
        self.check_size(messages, tools)
        prompt, prompt_tokens = _read(messages)
        if sampling.grammar:
            raise Refused("the dummy engine supports no schemas")
        arrived = time.monotonic()
        turn = await self._await_row(client, self._limits.max_wait if priority == "interactive" else None)
        waited = time.monotonic() - arrived
        tokens = min(sampling.max_tokens or self.max_new_tokens, MAX_NEW_TOKENS)
        promised = prompt_tokens + tokens
        self._promised += promised
        try:
            words = random.Random(f"{self._checksum} {sampling.seed} {prompt}")  # noqa: S311
            deadline = time.monotonic() + self._limits.max_seconds
            count = 0
            while count < tokens and time.monotonic() < deadline:
                await asyncio.sleep(TOKEN_SECONDS)
                if self._closed:
                    raise RuntimeError("the engine was closed")
                text = f" {words.choice(WORDS)}" if count else words.choice(WORDS)
                logprobs = () if sampling.logprobs is None else (_logprob(text, sampling.logprobs),)
                yield Delta(text, logprobs, 1, prompt_tokens)
                count += 1
            yield Finish("length", prompt_tokens, count, waited)
        finally:
            self._promised -= promised
            self._running.remove(turn)
            self._give_rows()

    def check_size(self, messages: Conversation, tools: Sequence[dict[str, Any]] = ()) -> int:
        """See Engine."""
        limit = self._limits.max_prompt_tokens
        tokens = prompt_size.estimate(messages, tools, lambda sizes: IMAGE_TOKENS * len(list(sizes)), limit)
        if tokens > limit:
            raise PromptTooLong.estimated(tokens, limit)
        return tokens

    def read_weights(self, release: Release, progress: Progress) -> Mapping[str, Any]:
        """See WorkerEngine."""
        return {"checksum": _checksum(release.model, progress)}

    def stage_weights(self, weights: Mapping[str, Any], progress: Progress) -> Staged:
        """See WorkerEngine."""
        progress("staging", 1.0)
        return Staged(weights, "memory")

    async def replace_weights(self, weights: Mapping[str, Any]) -> None:
        """See WorkerEngine."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        self._checksum = weights["checksum"]

    async def sleep(self) -> None:
        """See WorkerEngine; releases for vLLM can, if they ask for its sleep mode."""
        while self._running:  # noqa: ASYNC110  (once for each swap)
            await asyncio.sleep(TOKEN_SECONDS)
        self._asleep = True

    async def wake_up(self) -> None:
        """See WorkerEngine."""
        self._asleep = False
        self._give_rows()

    @property
    def context_length(self) -> int:
        """See Engine."""
        return self._limits.max_prompt_tokens + MAX_NEW_TOKENS

    def usage(self) -> Usage:
        """See Engine."""
        return Usage(len(self._running), len(self._waiting), self._promised, self._capacity)

    def answering(self) -> bool:
        """See Engine."""
        return True

    @property
    def closed(self) -> bool:
        """See WorkerEngine."""
        return self._closed

    def close(self) -> None:
        """See Engine."""
        self._closed = True

    async def _await_row(self, client: Client, seconds: float | None) -> _Turn:
        if self._closed:
            raise RuntimeError("the engine is closed")
        turn = _Turn(client)
        self._waiting.append(turn)
        self._give_rows()
        try:
            async with asyncio.timeout(seconds):
                await turn.came.wait()
        except BaseException as error:
            (self._running if turn.came.is_set() else self._waiting).remove(turn)
            self._give_rows()
            if isinstance(error, TimeoutError):
                raise QueueTimeout(f"no row became free within {seconds:.0f} s") from None
            raise
        return turn

    def _give_rows(self) -> None:
        while self._waiting and len(self._running) < self._rows and not self._asleep:
            shares = Shares(running.client for running in self._running)
            turn = min(self._waiting, key=lambda waiting: shares.of(waiting.client))
            if shares.of(turn.client)[0] >= self._limits.client_rows * self._rows:
                return
            self._waiting.remove(turn)
            self._running.append(turn)
            turn.came.set()


def _read(messages: Conversation) -> tuple[str, int]:
    """Return the text of a conversation and its number of tokens, four characters each."""
    texts, images = [], 0
    for message in [{"role": "", "content": messages}] if isinstance(messages, str) else messages:
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts += [message["role"], *(part["text"] for part in parts if part["type"] == "text")]
        images += sum(part["type"] == "image" for part in parts)
    text = "\n".join(texts)
    return text, 1 + len(text) // 4 + IMAGE_TOKENS * images


def _logprob(text: str, alternatives: int) -> TokenLogprob:
    token = text.encode()
    return TokenLogprob(token, 0.0, ((token, 0.0),) if alternatives else ())


def _checksum(path: Path, progress: Progress) -> int:
    """Check the files of a checkpoint as far as that goes without a model; raises ReleaseError naming the file."""
    from safetensors import SafetensorError, deserialize

    progress("reading", 0.0)
    checkpoint_files.check(path)
    checksum = 0
    for shard in checkpoint_files.shards(path):
        try:
            contents = shard.read_bytes()
            deserialize(contents)  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError) as error:
            raise ReleaseError(f"{shard} cannot be read: {error}") from error
        checksum = zlib.crc32(contents, checksum)
    progress("reading", 1.0)
    return checksum
