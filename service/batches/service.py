"""The batch service of one worker: the routes of files and batches, and the runner that processes batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from service.api.routes import Endpoint
from service.batches.api import BatchRoutes
from service.batches.storage import Storage
from service.fairness.timed_pool import TimedPool
from service.identity import Identity
from service.settings import Settings

if TYPE_CHECKING:
    from service.batches.runner import BatchRunner, Completer

__all__ = ["BatchService"]

WAIT_INTERVAL = 0.5  # seconds between two looks for the database of a first upload
THREADS = 4  # for the requests of clients; the runner has those of the database


class BatchService:
    """Routes and runner of one worker; `serving` returns whether the worker's gate is open.

    The storage is opened by the first request, and the runner is started once there is something stored.
    """

    def __init__(self, chat: Completer, identity: Identity, settings: Settings, *, serving: Callable[[], bool]) -> None:
        self._chat = chat
        self._identity = identity
        self._rows = settings.batch_rows
        self._serving = serving
        self._storage = Storage(settings)
        self._threads = TimedPool(THREADS, "files", settings.file_share)
        self.routes: list[Endpoint] = BatchRoutes(self._storage, settings, self._threads).routes()

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """Run the batch runner from the application's startup to its shutdown."""
        starting = asyncio.create_task(self._start())
        yield
        if starting.cancel():
            await asyncio.wait([starting])
        elif runner := starting.result():
            await runner.stop()
        self._threads.close()
        self._storage.close()

    async def _start(self) -> BatchRunner | None:
        """Start the runner once a file is stored; without rows for batches there is none."""
        if not self._rows:
            return None
        while not self._storage.exists():  # noqa: ASYNC110  (another process creates it)
            await asyncio.sleep(WAIT_INTERVAL)
        await self._storage.open()
        from service.batches.runner import BatchRunner

        batches = self._storage.batches
        runner = BatchRunner(batches, self._chat, self._identity, rows=self._rows, serving=self._serving)
        runner.start()
        return runner
