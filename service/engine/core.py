"""The engine loop without threads: each step computes the next token of every running sequence.

With lookahead, a step is launched before the tokens of the one before are read, so that the host prepares one step and
delivers the tokens of another while the device computes. Whether an output has ended is then known one step late: the
token that it got meanwhile is dropped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from service.engine.pace import Pace
from service.engine.protocol import TokenLogprob
from service.engine.runner import Runner
from service.engine.sampler import Sampler
from service.engine.scheduler import Scheduler, Step
from service.engine.sequence import Sequence
from service.engine.transfer import Download, upload

__all__ = ["Core"]

log = logging.getLogger("service")


class Core:
    """One model and its cache. All calls must come from the same thread.

    `token_bytes` maps a token id to its bytes; `pace` gives the number of prompt tokens of each step, `client_rows` is
    the part of the rows that one address may hold. `lookahead` is by default on for CUDA only. `clock` returns seconds.
    """

    def __init__(
        self,
        runner: Runner,
        token_bytes: Callable[[int], bytes],
        *,
        pace: Pace,
        client_rows: float = 1.0,
        lookahead: bool | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner, self._pace, self._clock = runner, pace, clock
        self._sampler = Sampler(token_bytes)
        self.scheduler = Scheduler(runner.cache, pace, client_rows)
        self._lookahead = runner.device.type == "cuda" if lookahead is None else lookahead
        self._unread: _Launched | None = None
        self._read_at = float("-inf")  # seconds

    def step(self) -> bool:
        """Schedule, run, sample, emit; return False if there was nothing to do."""
        began = self._clock()
        step = self.scheduler.schedule()
        before, self._unread = self._unread, None
        try:
            launched = self._launch(step, began) if step else None
        except Exception as error:
            self._read(before)
            self._fail_newest(step, error)
            return True
        self._read(before)
        if launched and launched.ahead:
            self._unread = launched
        else:
            self._read(launched)
        self.scheduler.reap()
        if not self.scheduler.rows:
            self._unread = None  # all of its tokens are surplus
        return bool(launched or before)

    def warm_up(self, seconds: float = float("inf"), progress: Callable[[float], None] = lambda _: None) -> None:
        """Do the one-time work that would slow down the first steps; what is not begun after `seconds` is left out.

        `progress` is called with the part that is done, 0.0 to 1.0.
        """
        self._runner.warm_up(self._pace.chunk, seconds, progress)

    def fail_all(self, error: BaseException) -> None:
        """Fail all running and waiting sequences."""
        self._unread = None
        for sequence in self.scheduler.remove_all():
            sequence.fail(error)

    def _launch(self, step: Step, began: float) -> _Launched:
        """Compute a step and sample its tokens, which are read here unless the step is looked ahead of."""
        logits = self._runner.forward(step.decoding, step.chunks)
        sequences, logits = _select_sampled(step, logits)
        ahead = self._lookahead and bool(sequences) and not any(sequence.needs_tokens for sequence in sequences)
        if ahead:
            chosen = self._sampler.choose(logits, sequences)
            launched = _Launched(step, sequences, began, chosen, Download(chosen))
        else:
            launched = _Launched(step, sequences, began)
            launched.tokens, launched.logprobs = self._sampler.sample(logits, sequences) if sequences else ([], [])
        self._runner.sampled = launched.chosen
        self.scheduler.advance(step)
        for place, sequence in enumerate(sequences):
            sequence.place = place
            sequence.unread += 1
        return launched

    def _read(self, launched: _Launched | None) -> None:
        """Append the tokens of a step to their sequences; those of sequences that have ended since are surplus."""
        if launched is None:
            return
        tokens, logprobs = launched.read()
        now, step = self._clock(), launched.step
        self._pace.record(len(step.decoding), step.prompt_tokens, now - max(launched.began, self._read_at))
        self._read_at = now
        for sequence, token, logprob in zip(launched.sequences, tokens, logprobs, strict=True):
            sequence.unread -= 1
            if sequence.ended:
                continue
            try:
                sequence.push(token, logprob)
            except Exception as error:
                sequence.fail(error)

    def _fail_newest(self, step: Step | None, error: Exception) -> None:
        """Fail the newest sequence of a failed step; the others are run again in the next step.

        A request that makes the step fail does so in its own first step, in which it is the newest. If the device is
        out of memory, removing the newest restores the load under which the steps before succeeded.
        """
        if step and (newest := step.newest):
            log.exception("a step of %d requests failed; aborting the newest", len(step.sequences))
            # its traceback, which was logged, holds the tensors of the failed step
            newest.fail(error.with_traceback(None))
        self.scheduler.reap()
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()


@dataclass
class _Launched:
    """A step whose tokens are sampled. With `download`, they are still on the device, where they are `chosen`."""

    step: Step
    sequences: list[Sequence]
    began: float  # seconds
    chosen: Tensor | None = None
    download: Download | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)

    @property
    def ahead(self) -> bool:
        """Whether the next step may be launched before the tokens are read."""
        return self.download is not None

    def read(self) -> tuple[list[int], list[TokenLogprob | None]]:
        """Return a token and its log probabilities, if requested, for each sequence; waits for the device."""
        if self.download is None:
            return self.tokens, self.logprobs
        return self.download.numbers(), [None] * len(self.sequences)


def _select_sampled(step: Step, logits: Tensor) -> tuple[list[Sequence], Tensor]:
    """Return the sequences that get a token in this step, and their logits."""
    sequences = step.sequences
    sampled = step.sampled
    if all(sampled):
        return sequences, logits
    indices = [index for index, is_sampled in enumerate(sampled) if is_sampled]
    return [sequences[index] for index in indices], logits[upload(indices, logits.device, torch.long)]
