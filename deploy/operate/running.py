"""A command of glmctl that runs for an operator: its record, its output in a file, and its end."""

from __future__ import annotations

import fcntl
import os
import secrets
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from deploy import interrupts
from deploy.journal.record import OPERATOR_VARIABLE, now
from service.contract import atomic
from service.contract.operations import Operation, directory, newest, output

__all__ = ["Running"]

_KEPT = 200  # operations


@dataclass
class Running:
    """An operation whose process was started. The lock on its output is held until both this process and glmctl end."""

    operation: Operation
    process: subprocess.Popen[bytes]
    path: Path
    log: int
    """The descriptor of its output."""

    @classmethod
    def begin(cls, state: Path, operator: str, glmctl: Sequence[str], words: Sequence[str]) -> Running:
        """Start glmctl with the arguments `words`, and write a record. Raises OSError."""
        place = directory(state)
        place.mkdir(mode=0o755, exist_ok=True)
        _prune(state)
        identifier = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(4)}"
        operation = Operation(identifier, operator, tuple(words), now())
        path = place / f"{identifier}.json"
        log = os.open(
            path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644
        )
        fcntl.flock(log, fcntl.LOCK_EX)
        atomic.write_text(path, operation.text(), durable=True)  # before anything happens
        process = subprocess.Popen(
            [*glmctl, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, OPERATOR_VARIABLE: operator},
        )
        return cls(operation, process, path, log)

    def wait(self) -> int:
        """Wait until glmctl has ended, record its exit code and return it; signals reach glmctl too, and end it."""
        with interrupts.held():
            code = self.process.wait()
            atomic.write_text(self.path, replace(self.operation, ended_at=now(), code=code).text(), durable=True)
            os.close(self.log)
        return code


def _prune(state: Path) -> None:
    """Remove the oldest operations that have ended, so that `_KEPT` stay with the next one."""
    for operation in newest(state, None)[_KEPT - 1 :]:
        if not output(state, operation)[1]:
            for suffix in (".json", ".log"):
                with suppress(OSError):
                    (directory(state) / f"{operation.id}{suffix}").unlink()
