"""A request to a rollout that bakes, in another process, to roll back; for a swap, which takes more than a rename."""

from __future__ import annotations

import time

from deploy.errors import GlmError
from deploy.journal.journal import Journal
from deploy.journal.record import Record
from deploy.rollout.plan import Context
from service.contract import atomic, regular_file

_POLL = 0.2


class RollbackRequest:
    """The file `$RUNTIME/rollback`, which holds the id of the rollout. A reboot removes it."""

    def __init__(self, context: Context, record: Record) -> None:
        self._context, self._id = context, record.id
        self._path = context.host.runtime / "rollback"

    @property
    def is_made(self) -> bool:
        """Whether the rollout was requested to roll back."""
        try:
            return regular_file.read(self._path) == self._id.encode()
        except OSError:
            return False

    def make(self) -> None:
        """Make the request; raises OSError."""
        atomic.write_text(self._path, self._id)

    def withdraw(self) -> None:
        """Remove the request."""
        self._path.unlink(missing_ok=True)

    def wait(self) -> Record:
        """Make the request and wait until the rollout has ended; raises GlmError if its controller dies meanwhile."""
        journal = Journal(self._context.host)
        self.make()
        while (record := journal.find(self._id)) and record.outcome is None:
            if not journal.is_locked:
                raise GlmError("the controller of the rollout has died", hint="`glmctl resume` goes on with it")
            self._context.display.progress(f"the deploy of {record.version} is rolled back: {record.phase}")
            time.sleep(_POLL)
        self.withdraw()
        if record is None:
            raise GlmError(f"the record of rollout {self._id} is gone")
        return record
