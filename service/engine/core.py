"""The engine proper, without threads: sequences go in, and every step says the next token of those that run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from service.engine.runner import Runner
from service.engine.sampler import Sampler
from service.engine.scheduler import Scheduler, Step
from service.engine.sequence import Sequence

__all__ = ["Core"]

log = logging.getLogger("service")


class Core:
    """One model and its cache. Every call comes from one thread."""

    def __init__(self, runner: Runner, spell: Callable[[int], bytes], *, chunk: int) -> None:
        self._runner = runner
        self._sampler = Sampler(spell)
        self.scheduler = Scheduler(runner.cache, chunk)

    def step(self) -> bool:
        """Schedule, run, sample, emit; returns whether there was anything to run."""
        step = self.scheduler.schedule()
        if step is None:
            return False
        try:
            logits = self._runner.forward(step.decoding, step.chunks)
            sequences, logits = _speaking(step, logits)
            tokens, reports = self._sampler.sample(logits, sequences) if sequences else ([], [])
        except Exception as error:
            self._sacrifice(step, error)
            return True
        self.scheduler.advance(step)
        for sequence, token, report in zip(sequences, tokens, reports, strict=True):
            try:
                sequence.push(token, report)
            except Exception as error:
                sequence.fail(error)
        self._reap()
        return True

    def warm_up(self) -> None:
        """Prepare what makes first steps slow; the cache must be empty."""
        self._runner.warm_up()

    def fail_all(self, error: BaseException) -> None:
        """End all that run or wait."""
        for sequence in self.scheduler.everyone():
            sequence.fail(error)

    def _sacrifice(self, step: Step, error: Exception) -> None:
        """Fail the newest sequence of a step that failed: the others run again in the next one.

        What a request alone can break, it breaks in its own first step, where it is the newest; and when the device's
        memory is short, the newest is the one too many.
        """
        newest = step.newest
        log.exception("a step of %d failed; its newest request is given up", len(step.decoding) + len(step.chunks))
        newest.fail(error)
        self._reap()
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()

    def _reap(self) -> None:
        for sequence in self.scheduler.reap():
            self._sampler.forget(sequence)


def _speaking(step: Step, logits: Any) -> tuple[list[Sequence], Any]:
    """Pick those who say a token in this step, and their logits."""
    everyone = [*step.decoding, *(sequence for sequence, _ in step.chunks)]
    speaking = step.speaking
    if all(speaking):
        return everyone, logits
    picked = [index for index, speaks in enumerate(speaking) if speaks]
    return [everyone[index] for index in picked], logits[picked]
