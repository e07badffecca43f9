"""The engine loop without threads: each step computes the next token of every running sequence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from service.engine.pace import Pace
from service.engine.runner import Runner
from service.engine.sampler import Sampler
from service.engine.scheduler import Scheduler, Step
from service.engine.sequence import Sequence

__all__ = ["Core"]

log = logging.getLogger("service")


class Core:
    """One model and its cache. All calls must come from the same thread.

    `token_bytes` maps a token id to its bytes; `pace` gives the number of prompt tokens of each step, `client_rows` is
    the part of the rows that one address may hold. `clock` returns seconds.
    """

    def __init__(
        self,
        runner: Runner,
        token_bytes: Callable[[int], bytes],
        *,
        pace: Pace,
        client_rows: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner, self._pace, self._clock = runner, pace, clock
        self._sampler = Sampler(token_bytes)
        self.scheduler = Scheduler(runner.cache, pace, client_rows)

    def step(self) -> bool:
        """Schedule, run, sample, emit; return False if there was nothing to run."""
        began = self._clock()
        step = self.scheduler.schedule()
        if step is None:
            return False
        try:
            logits = self._runner.forward(step.decoding, step.chunks)
            sequences, logits = _select_sampled(step, logits)
            tokens, logprobs = self._sampler.sample(logits, sequences) if sequences else ([], [])
        except Exception as error:
            self._fail_newest(step, error)
            return True
        self._pace.record(len(step.decoding), step.prompt_tokens, self._clock() - began)
        self.scheduler.advance(step)
        for sequence, token, logprob in zip(sequences, tokens, logprobs, strict=True):
            try:
                sequence.push(token, logprob)
            except Exception as error:
                sequence.fail(error)
        self.scheduler.reap()
        return True

    def warm_up(self, seconds: float = float("inf")) -> None:
        """Do the one-time work that would slow down the first steps; what is not begun after `seconds` is left out."""
        self._runner.warm_up(self._pace.chunk, seconds)

    def fail_all(self, error: BaseException) -> None:
        """Fail all running and waiting sequences."""
        for sequence in self.scheduler.remove_all():
            sequence.fail(error)

    def _fail_newest(self, step: Step, error: Exception) -> None:
        """Fail the newest sequence of a failed step; the others are run again in the next step.

        A request that makes the step fail does so in its own first step, in which it is the newest. If the device is
        out of memory, removing the newest restores the load under which the steps before succeeded.
        """
        newest = step.newest
        log.exception("a step of %d requests failed; aborting the newest", len(step.decoding) + len(step.chunks))
        # its traceback, which was logged, holds the tensors of the failed step
        newest.fail(error.with_traceback(None))
        self.scheduler.reap()
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()


def _select_sampled(step: Step, logits: Tensor) -> tuple[list[Sequence], Tensor]:
    """Return the sequences that get a token in this step, and their logits."""
    sequences = step.sequences
    sampled = step.sampled
    if all(sampled):
        return sequences, logits
    indices = [index for index, is_sampled in enumerate(sampled) if is_sampled]
    return [sequences[index] for index in indices], logits[indices]
