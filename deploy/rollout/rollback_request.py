"""An operator's wish that a rollout which bakes go back, where that takes more than a rename."""

from __future__ import annotations

import time

from deploy.errors import GlmError
from deploy.journal.journal import Journal, Record
from deploy.rollout.plan import Context

_LOOK = 0.2


class Wish:
    """`<runtime>/rollback` holds the id of the rollout that is to go back; it is gone after a reboot."""

    def __init__(self, context: Context, record: Record) -> None:
        self._context, self._id = context, record.id
        self._path = context.host.runtime / "rollback"

    @property
    def is_made(self) -> bool:
        """Whether somebody asked this rollout to go back."""
        try:
            return self._path.read_text() == self._id
        except OSError:
            return False

    def come_true(self) -> Record:
        """Ask the rollout to go back and wait until it has; raises GlmError when its controller dies of it."""
        journal = Journal(self._context.host)
        self._path.write_text(self._id)
        while (record := journal.find(self._id)) and record.outcome is None:
            if not journal.is_locked:
                raise GlmError("the rollout that bakes has died", hint="`glmctl status` ends it")
            self._context.display.progress(f"the deploy of {record.version} goes back: {record.phase}")
            time.sleep(_LOOK)
        self._path.unlink(missing_ok=True)
        if record is None:
            raise GlmError(f"the record of rollout {self._id} has gone")
        return record
