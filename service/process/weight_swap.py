"""Replaces the weights of a running model: carries out a weights order in one worker.

The worker reads the new weights while it serves, and brings them to where they can replace the old ones fastest. Then
it blocks new requests, waits until the admitted ones are answered, replaces the weights, and runs the release's checks.
After that the order and the slot's symlink decide, for all workers alike, whether the new weights are kept; only then
are the waiting requests answered.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from service.chat.admission import Admission
from service.contract.checks import DEFAULT_CHECKS
from service.contract.weights_order import Step, WeightsOrder, WeightsOrderFile
from service.contract.worker_state import SwapReport, WorkerStateFile
from service.engine import WorkerEngine
from service.identity import Identity
from service.model.release import Release, ReleaseError
from service.process.checks import CheckFailed, run_checks

__all__ = ["WeightSwapper"]

_POLL = 0.02  # seconds between two reads of the order
_BUSY_POLL = 0.005  # the same while requests wait
_MAX_WAIT = 60.0  # seconds that requests may wait while the worker catches up
_RETRY = 5.0  # seconds until another attempt to catch up

logger = logging.getLogger("gunicorn.error")


class _KeepOld(Exception):
    """The old weights are kept: the order was cancelled."""


@dataclass
class WeightSwapper:
    """Carries out the weights orders of a generation, and sets the version of the worker."""

    engine: WorkerEngine
    admission: Admission
    identity: Identity
    state_file: WorkerStateFile
    order_file: WeightsOrderFile
    _done: str = ""  # the id of the last order that was carried out

    async def follow(self) -> None:
        """Read the order periodically, and carry it out; runs until cancelled."""
        while True:
            order = self.order_file.read()
            if order is not None and self._is_for_this_worker(order):
                self._done = order.id
                await self._carry_out(order)
            elif self.order_file.version(self.identity.version) != self.identity.version:
                await self._catch_up()
            await asyncio.sleep(_POLL)

    def _is_for_this_worker(self, order: WeightsOrder) -> bool:
        return order.id != self._done and os.getpid() in order.workers and self.order_file.verdict(order) is None

    async def _carry_out(self, order: WeightsOrder) -> None:
        report = SwapReport(order.id, "preparing")
        self.state_file.state.swap = report
        self.state_file.publish()
        try:
            release, new = await asyncio.to_thread(self._read, order.after, report)
            _, old = await asyncio.to_thread(self._read, order.before, SwapReport(order.id, "preparing"))
            async with self._staged(new, report) as staged:
                self._report(report, "prepared")
                await self._await_step(order, "vacate")
                async with asyncio.timeout(order.seconds), self._vacated(order, report):
                    self._report(report, "vacated")
                    await self._await_step(order, "verify")
                    async with self._restored_on_failure(old):
                        await self._try(order, release, staged, report)
        except _KeepOld:
            self._report(report, "back")
        except TimeoutError:
            report.error = f"requests had waited for {order.seconds:.0f} s"
            self._report(report, "failed")
        except (ReleaseError, CheckFailed) as error:
            report.error = str(error)
            self._report(report, "failed")
        except Exception as error:
            logger.exception("cannot use the weights of %s", order.after)
            report.error = f"{type(error).__name__}: {error}"
            self._report(report, "failed")
        else:
            self._report(report, "done")

    async def _try(self, order: WeightsOrder, release: Release, new: Mapping[str, Any], report: SwapReport) -> None:
        """Use the new weights, run the checks, and wait for the decision whether all workers keep the weights."""

        def progress(step: str, share: float) -> None:
            report.step, report.progress = step, share

        self._report(report, "checking")
        await self.engine.replace_weights(new)
        await run_checks(self.engine, replace(release, checks=release.checks or DEFAULT_CHECKS), progress)
        self._report(report, "passed")
        while not (verdict := self.order_file.verdict(self._current(order))):
            if verdict is False:
                raise _KeepOld
            await asyncio.sleep(_BUSY_POLL)
        self._set_version(order.after)

    async def _catch_up(self) -> None:
        """Use the weights of the other workers; for a worker that loaded the old ones during the swap."""
        version = self.order_file.version(self.identity.version)
        report = SwapReport("", "preparing")
        try:
            _, new = await asyncio.to_thread(self._read, version, report)
            _, old = await asyncio.to_thread(self._read, self.identity.version, report)
            async with (
                self._staged(new, report) as staged,
                asyncio.timeout(_MAX_WAIT),
                self._vacated(None, report),
                self._restored_on_failure(old),
            ):
                await self.engine.replace_weights(staged)
                self._set_version(version)
        except Exception:
            logger.exception("cannot replace the weights of %s by those of %s", self.identity.version, version)
            await asyncio.sleep(_RETRY)

    def _read(self, version: str, report: SwapReport) -> tuple[Release, Mapping[str, Any]]:
        def progress(step: str, share: float) -> None:
            report.step, report.progress = step, share

        release = Release.read((self.order_file.slots.root / "releases" / version).resolve())
        return release, self.engine.read_weights(release, progress)

    @asynccontextmanager
    async def _staged(self, new: Mapping[str, Any], report: SwapReport) -> AsyncIterator[Mapping[str, Any]]:
        """Stage the new weights for the block."""

        def progress(step: str, share: float) -> None:
            report.step, report.progress = step, share

        staged = await asyncio.to_thread(self.engine.stage_weights, new, progress)
        report.staged = staged.place
        try:
            yield staged.weights
        finally:
            if not self.engine.closed:  # else its thread may still read them, and the process is about to end
                await asyncio.to_thread(staged.release)

    @asynccontextmanager
    async def _vacated(self, order: WeightsOrder | None, report: SwapReport) -> AsyncIterator[None]:
        """Block new requests, wait until the engine has answered the admitted ones, and measure the pause."""
        started = time.monotonic()
        self.admission.pause()
        try:
            while self.admission.pending or self._is_answering():
                if order is not None and self.order_file.verdict(self._current(order)) is False:
                    raise _KeepOld
                await asyncio.sleep(_BUSY_POLL)
            yield
        finally:
            self.admission.resume()
            report.pause_ms = round((time.monotonic() - started) * 1000, 1)

    def _is_answering(self) -> bool:
        usage = self.engine.usage()
        return bool(usage.running or usage.waiting)

    @asynccontextmanager
    async def _restored_on_failure(self, old: Mapping[str, Any]) -> AsyncIterator[None]:
        """Restore the old weights if the block fails.

        If that fails too, the process exits, because the model may have weights of both versions.
        """
        try:
            yield
        except BaseException:
            if self.engine.closed:  # the worker is leaving
                raise
            try:
                await self.engine.replace_weights(old)
            except BaseException:
                logger.exception("cannot restore the old weights")
                os._exit(1)
            raise

    async def _await_step(self, order: WeightsOrder, step: Step) -> None:
        """Wait until the controller sets this step; raises _KeepOld if the order is cancelled."""
        while (current := self._current(order)).step != step:
            if self.order_file.verdict(current) is not None:
                raise _KeepOld
            await asyncio.sleep(_BUSY_POLL)

    def _current(self, order: WeightsOrder) -> WeightsOrder:
        """Return the order with its current step; `order` itself if the file is gone or has another order."""
        current = self.order_file.read()
        return current if current is not None and current.id == order.id else order

    def _set_version(self, version: str) -> None:
        """Set the version of all further answers. Must be last: the old weights are restored if a later step fails."""
        logger.info("the model holds the weights of %s (before: %s)", version, self.identity.version)
        self.state_file.state.set_version(version)
        self.identity.version = version

    def _report(self, report: SwapReport, state: str) -> None:
        report.state = state
        self.state_file.publish()
