"""The batch service of one worker: the routes of files and batches, and the runner that processes batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.api.routes import Endpoint
from service.batches.api import BatchRoutes
from service.batches.database import Database
from service.batches.files import Files
from service.batches.runner import BatchRunner, Completer
from service.batches.store import Batches
from service.fairness.timed_pool import TimedPool
from service.identity import Identity
from service.settings import Settings

__all__ = ["BatchService"]

THREADS = 4  # for the requests of clients; the runner has those of the database


class BatchService:
    """Routes and runner of one worker; `serving` returns whether the worker's gate is open.

    The database is opened on first use: chat completions work without a state directory, or with a full one.
    """

    def __init__(self, chat: Completer, identity: Identity, settings: Settings, *, serving: Callable[[], bool]) -> None:
        self._database = Database(settings.state)
        batches = Batches(self._database, Files(self._database, settings), settings)
        self._threads = TimedPool(THREADS, "files", settings.file_share)
        self.routes: list[Endpoint] = BatchRoutes(batches, settings, self._threads).routes()
        self.runner = BatchRunner(batches, chat, identity, rows=settings.batch_rows, serving=serving)

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """Run the batch runner from the application's startup to its shutdown."""
        self.runner.start()
        yield
        await self.runner.stop()
        self._threads.close()
        self._database.close()
