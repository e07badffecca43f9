"""Other weights for a model that serves, as a worker carries it out: what the controller orders, step by step.

The worker reads the weights beside those in use. Then it lets no request pass to the engine any more, and when those
that passed have been answered, the model is given the weights and asked the release's checks, before any client meets
them. What comes then is the controller's word or the slot's symlink, the same for all workers: on, or back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from service.chat.admission import Admission
from service.contract.checks import DEFAULT_CHECKS
from service.contract.weights_order import Order, Orders, Step
from service.contract.worker_state import Account, Report
from service.engine import Usage
from service.identity import Identity
from service.metrics import Metrics
from service.model.release import Release, ReleaseError
from service.process.checks import CheckFailed, run_checks

if TYPE_CHECKING:
    from service.engine.model_engine import ModelEngine
    from service.engine.tensors import State

__all__ = ["Changes"]

_TICK = 0.02  # seconds between two looks for an order
_BUSY_TICK = 0.005  # and while one is carried out, for clients wait
_LONGEST = 60.0  # seconds for which requests may wait without an order
_AGAIN = 5.0  # seconds until what went wrong then is tried again

logger = logging.getLogger("gunicorn.error")


class _Back(Exception):
    """The old weights are to be kept."""


@dataclass
class Changes:
    """Follows the orders that a generation is given. It alone says which version the worker's model holds."""

    engine: ModelEngine
    admission: Admission
    identity: Identity
    account: Account
    orders: Orders
    _done: str = ""  # the order that was carried out last

    async def follow(self) -> None:
        """Look for orders until cancelled."""
        while True:
            order = self.orders.read()
            if order is not None and self._is_for_us(order):
                self._done = order.id
                await self._carry_out(order)
            elif self.orders.version(self.identity.version) != self.identity.version:
                await self._catch_up()
            await asyncio.sleep(_TICK)

    def _is_for_us(self, order: Order) -> bool:
        return order.id != self._done and os.getpid() in order.workers and self.orders.verdict(order) is None

    async def _carry_out(self, order: Order) -> None:
        report = Report(order.id, "preparing")
        self.account.tell(report)
        try:
            release, new = await asyncio.to_thread(self._read, order.after, report)
            _, old = await asyncio.to_thread(self._read, order.before, Report(order.id, "preparing"))
            self._say(report, "prepared")
            await self._await_step(order, "vacate")
            async with asyncio.timeout(order.seconds), self._vacated(order, report):
                self._say(report, "vacated")
                await self._await_step(order, "verify")
                async with self._old_ones_unless_decided(old):
                    await self._try(order, release, new, report)
        except _Back:
            self._say(report, "back")
        except TimeoutError:
            report.error = f"requests had waited for {order.seconds:.0f} s"
            self._say(report, "failed")
        except (ReleaseError, CheckFailed) as error:
            report.error = str(error)
            self._say(report, "failed")
        except Exception as error:
            logger.exception("the weights of %s were not taken", order.after)
            report.error = f"{type(error).__name__}: {error}"
            self._say(report, "failed")
        else:
            self._say(report, "done")

    async def _try(self, order: Order, release: Release, new: State, report: Report) -> None:
        """Prove the new weights, and hold them from the moment on at which all workers do."""

        def progress(step: str, share: float) -> None:
            report.step, report.progress = step, share

        self._say(report, "checking")
        await self.engine.put(new)
        await run_checks(self.engine, replace(release, checks=release.checks or DEFAULT_CHECKS), progress)
        self._say(report, "passed")
        while not (holds := self.orders.verdict(self._present(order))):
            if holds is False:
                raise _Back
            await asyncio.sleep(_BUSY_TICK)
        self._become(order.after)

    async def _catch_up(self) -> None:
        """Take the weights that the others hold: this worker was born while they changed, with the old ones."""
        version = self.orders.version(self.identity.version)
        report = Report("", "preparing")
        try:
            _, new = await asyncio.to_thread(self._read, version, report)
            _, old = await asyncio.to_thread(self._read, self.identity.version, report)
            vacated = self._vacated(None, report)
            async with asyncio.timeout(_LONGEST), vacated, self._old_ones_unless_decided(old):
                await self.engine.put(new)
                self._become(version)
        except Exception:
            logger.exception("%s is to be served, and %s is", version, self.identity.version)
            await asyncio.sleep(_AGAIN)

    def _read(self, version: str, report: Report) -> tuple[Release, State]:
        def progress(step: str, share: float) -> None:
            report.step, report.progress = step, share

        release = Release.read((self.orders.root / "releases" / version).resolve())
        return release, self.engine.read(release, progress)

    @asynccontextmanager
    async def _vacated(self, order: Order | None, report: Report) -> AsyncIterator[None]:
        """Let nobody pass, wait until who passed is in the engine's hands, and measure how long all wait."""
        began = time.monotonic()
        self.admission.pause()
        try:
            while self.admission.pending or self._is_answering():
                if order is not None and self.orders.verdict(self._present(order)) is False:
                    raise _Back
                await asyncio.sleep(_BUSY_TICK)
            yield
        finally:
            self.admission.resume()
            report.pause_ms = round((time.monotonic() - began) * 1000, 1)

    def _is_answering(self) -> bool:
        usage = self.engine.usage()
        return bool(usage.running or usage.waiting)

    @asynccontextmanager
    async def _old_ones_unless_decided(self, old: State) -> AsyncIterator[None]:
        """Put the old weights back if what is done inside fails; rather no worker at all than one of both."""
        try:
            yield
        except BaseException:
            if self.engine.closed:  # the worker has left
                raise
            try:
                await self.engine.put(old)
            except BaseException:
                logger.exception("the old weights could not be put back")
                os._exit(1)
            raise

    async def _await_step(self, order: Order, step: Step) -> None:
        """Wait until the controller has taken the order so far; raises _Back when it is off."""
        while (present := self._present(order)).step != step:
            if self.orders.verdict(present) is not None:
                raise _Back
            await asyncio.sleep(_BUSY_TICK)

    def _present(self, order: Order) -> Order:
        """The order as it stands now; one that is gone, or gave way to another, stands as we knew it."""
        present = self.orders.read()
        return present if present is not None and present.id == order.id else order

    def _become(self, version: str) -> None:
        """From here on the worker says that it is `version`. Nothing that can fail may follow."""
        logger.info("the model holds the weights of %s (before: %s)", version, self.identity.version)
        Metrics(self.identity.version, self.identity.slot).set_engine_usage(Usage(0, 0, 0, 0))
        self.account.turn(version)
        self.identity.version = version

    def _say(self, report: Report, state: str) -> None:
        report.state = state
        self.account.write()
