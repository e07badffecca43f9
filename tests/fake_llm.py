"""A stand-in for vLLM's AsyncLLM, with the signatures that `service.engine.vllm.llm` names, and no core process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from service.engine.vllm.llm import AsyncLLM
from service.engine.vllm.stats import Stats

CONTEXT, VOCABULARY = 512, 1216


@dataclass
class Logprob:
    """See llm.Logprob."""

    logprob: float
    rank: int | None = None


@dataclass
class Completion:
    """See llm.Completion."""

    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Any]] | None = None
    finish_reason: str | None = None


@dataclass
class Output:
    """See llm.Output."""

    outputs: Sequence[Any]
    finished: bool = False


class CoreDied(Exception):
    """What vLLM raises as EngineDeadError."""


Script = Callable[[list[int], int], int]
"""Returns the token in a place of a sequence; arguments: prompt and output so far, and the place within the output."""


@dataclass
class FakeLLM:
    """Its tokens come from `script`. It stops at the stop tokens of a request, as vLLM does."""

    script: Script
    errored: bool = False
    vllm_config: Any = None
    calls: list[Any] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    priorities: list[int] = field(default_factory=list)
    params: list[Any] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    held: asyncio.Event | None = None
    """While it is not set, no token is computed."""
    fails: str = ""
    """The call that raises."""

    def __post_init__(self) -> None:
        cache = SimpleNamespace(num_gpu_blocks=8, block_size=128)
        model = SimpleNamespace(max_model_len=CONTEXT, get_vocab_size=lambda: VOCABULARY, enable_sleep_mode=True)
        self.vllm_config = SimpleNamespace(cache_config=cache, model_config=model)

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, priority: int = 0
    ) -> AsyncGenerator[Any, None]:
        self.prompts.append(prompt)
        self.params.append(sampling_params)
        self.priorities.append(priority)
        sequence = list(prompt["prompt_token_ids"])
        done = False
        try:
            for place in range(sampling_params["max_tokens"]):
                await asyncio.sleep(0)
                while self.held and not self.held.is_set() and not self.errored:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                if self.errored:
                    raise CoreDied
                token = self.script(sequence, place)
                sequence.append(token)
                stops = place + 1 >= sampling_params["min_tokens"] and token in sampling_params["stop_token_ids"]
                done = stops or place + 1 == sampling_params["max_tokens"]
                logprobs = None
                if (count := sampling_params["logprobs"]) is not None:
                    others = {token + step: Logprob(-1.0 * step, step + 1) for step in range(count)}
                    logprobs = [{**others, token: Logprob(0.0, 1)}]
                reason = ("stop" if stops else "length") if done else None
                yield Output([Completion([token], logprobs, reason)], done)
                if done:
                    return
        finally:
            if not done:
                self.aborted.append(request_id)

    async def pause_generation(self, *, mode: Any = "abort", clear_cache: bool = True) -> None:
        self.calls.append(("pause", mode, clear_cache))

    async def resume_generation(self) -> None:
        self.calls.append("resume")

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,  # noqa: ASYNC109
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.calls.append((method, kwargs))

    async def reset_prefix_cache(self) -> None:
        self.calls.append("reset prefixes")

    async def reset_mm_cache(self) -> None:
        self.calls.append("reset pictures")

    async def reset_encoder_cache(self) -> None:
        self.calls.append("reset encoder")

    async def sleep(self, level: int = 1, mode: Any = "abort") -> None:
        self._call("sleep", level, mode)

    async def wake_up(self, tags: list[str] | None = None) -> Any:
        if self.held:
            await self.held.wait()
        self._call("wake up")

    def _call(self, name: str, *arguments: Any) -> None:
        if self.errored:
            raise CoreDied
        if name == self.fails:
            raise RuntimeError(name)
        self.calls.append((name, *arguments) if arguments else name)

    async def check_health(self) -> None:
        if self.errored:
            raise CoreDied

    def shutdown(self, timeout: float | None = None) -> None:
        self.calls.append("shutdown")


class FakeBackend:
    """Starts FakeLLMs; `params` returns the arguments."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.stats = Stats()
        self.started: list[FakeLLM] = []
        self.models: list[Path] = []
        self.fails = False

    @property
    def llm(self) -> FakeLLM:
        return self.started[-1]

    def start(self, model: Path) -> AsyncLLM:
        if self.fails:
            raise RuntimeError("no memory")
        self.models.append(model)
        self.started.append(FakeLLM(self.script))
        return self.llm

    def params(self, arguments: Mapping[str, Any], grammar: str | None) -> Any:
        return {**arguments, "grammar": grammar}
