"""Lets the engine of a worker sleep while its generation has the order to."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass

from service.contract.sleep_order import SleepOrder
from service.contract.worker_state import WorkerStateFile
from service.engine import WorkerEngine
from service.handover.server import SlotServer

__all__ = ["Sleeper", "until_withdrawn"]

_POLL = 0.05  # seconds between two looks for the order

logger = logging.getLogger("gunicorn.error")


async def until_withdrawn(order: SleepOrder) -> None:
    """Return once there is no order to sleep."""
    while order.is_given:  # noqa: ASYNC110  (another process withdraws it)
        await asyncio.sleep(_POLL)


@dataclass
class Sleeper:
    """Follows the order in a worker whose engine can sleep.

    If the engine cannot be put to sleep, or does not wake up, the process ends. The master starts another one, which
    waits while there is the order, and then loads.
    """

    engine: WorkerEngine
    server: SlotServer
    state_file: WorkerStateFile
    order: SleepOrder

    async def follow(self) -> None:
        """Follow the order; runs until cancelled."""
        while True:
            if self.order.is_given:
                if await self.server.vacate(lambda: self.order.is_given) and not self.server.should_exit:
                    await self._sleep()
                self.server.serve_again()
            await asyncio.sleep(_POLL)

    async def _sleep(self) -> None:
        """Sleep until the order is withdrawn."""
        state = self.state_file.state
        try:
            await self.engine.sleep()
            if self.server.should_exit:
                return
            state.phase, state.memory = "asleep", self.engine.memory
            self.state_file.publish()
            logger.info("the engine of %s sleeps", state.version)
            await until_withdrawn(self.order)
            state.step, state.progress = "waking up", 0.0
            await self.engine.wake_up()
        except Exception:
            if self.server.should_exit:
                return
            logger.exception("the engine of %s cannot sleep or wake up; another worker loads it", state.version)
            os._exit(1)
        if self.server.should_exit:  # the worker is leaving
            return
        state.phase, state.step, state.progress, state.memory = "ready", "", 1.0, self.engine.memory
        logger.info("the engine of %s is awake", state.version)
