"""What is used of vLLM's AsyncLLM and of its outputs, as vLLM declares it: a test compares the signatures."""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from service.engine.vllm.stats import Stats

__all__ = ["AsyncLLM", "Backend", "Completion", "Logprob", "Output"]


class Logprob(Protocol):
    """One token in one place."""

    logprob: float
    rank: int | None


class Completion(Protocol):
    """What has been added to an output."""

    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Logprob]] | None
    finish_reason: str | None


class Output(Protocol):
    """What `generate` yields."""

    outputs: Sequence[Completion]
    finished: bool


class AsyncLLM(Protocol):
    """vLLM's engine, whose core is a process."""

    vllm_config: Any

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, priority: int = 0
    ) -> AsyncGenerator[Output, None]: ...
    async def pause_generation(self, *, mode: Any = "abort", clear_cache: bool = True) -> None: ...
    async def resume_generation(self) -> None: ...
    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,  # noqa: ASYNC109  (vLLM's name)
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any: ...
    async def reset_prefix_cache(self) -> Any: ...
    async def reset_mm_cache(self) -> Any: ...
    async def reset_encoder_cache(self) -> Any: ...
    async def sleep(self, level: int = 1, mode: Any = "abort") -> None: ...
    async def wake_up(self, tags: list[str] | None = None) -> Any: ...
    async def check_health(self) -> None: ...
    def shutdown(self, timeout: float | None = None) -> None: ...
    @property
    def errored(self) -> bool: ...


class Backend(Protocol):
    """See backend.Vllm."""

    stats: Stats

    def start(self, model: Path) -> AsyncLLM: ...
    def params(self, arguments: Mapping[str, Any], grammar: str | None) -> Any: ...
