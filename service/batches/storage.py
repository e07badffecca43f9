"""The stored files and batches of one worker, imported and opened on first use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from service.batches.database_file import DatabaseFile
from service.settings import Settings

if TYPE_CHECKING:
    from service.batches.database import Database
    from service.batches.files import Files
    from service.batches.store import Batches

__all__ = ["Storage"]


class Storage:
    """`batches`, `files` and `database`, which exist after `open`.

    Their modules need SQLAlchemy, which takes a third of a worker's imports, and most servers store no file. Chat
    completions work without a state directory, or with a full one.
    """

    batches: Batches
    files: Files
    database: Database

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file = DatabaseFile(settings.state)
        self._opening = asyncio.Lock()
        self._is_open = False

    def exists(self) -> bool:
        """Return whether a worker of this host has ever stored a file."""
        return bool(self._file.stamp())

    async def open(self) -> None:
        """Import the modules, in a thread; does nothing when they are."""
        async with self._opening:
            if not self._is_open:
                await asyncio.to_thread(self._open)
                self._is_open = True

    def _open(self) -> None:
        from service.batches.database import Database
        from service.batches.files import Files
        from service.batches.store import Batches

        self.database = Database(self._settings.state)
        self.files = Files(self.database, self._settings)
        self.batches = Batches(self.database, self.files, self._settings)

    def close(self) -> None:
        """Close the database."""
        if self._is_open:
            self.database.close()
