"""Files and batches of one worker: what it serves of them, and the labourer that works on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.routing import Route

from service.batches.api import BatchRoutes
from service.batches.database import Database
from service.batches.files import Files
from service.batches.runner import Completes, Labourer
from service.batches.store import Batches
from service.identity import Identity
from service.settings import Settings

__all__ = ["Office"]


class Office:
    """Opens nothing before it is asked for: a state directory that is missing or full is no trouble to the chat."""

    def __init__(self, chat: Completes, identity: Identity, settings: Settings, *, serving: Callable[[], bool]) -> None:
        self._database = Database(settings.state)
        batches = Batches(self._database, Files(self._database), settings)
        self.routes: list[Route] = BatchRoutes(batches, settings).table()
        self.labourer = Labourer(batches, chat, identity, rows=settings.batch_rows, serving=serving)

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """Work from the application's startup to its shutdown."""
        self.labourer.start()
        yield
        await self.labourer.stop()
        self._database.close()
