"""What vLLM does while it starts: its own log lines, from all of its processes, and the processor time that it uses.

vLLM has no call that reports its progress, and its names for what it does differ between versions.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from service.model.release import Progress

__all__ = ["FILE", "PhaseHandler", "Phases", "logging_config", "phase_file", "reported"]

FILE = "GLM_VLLM_PHASE"
"""Environment variable with the path of the file that holds the last line."""

_LENGTH = 90  # characters of a line that are kept
_HALF = 60.0  # seconds; a phase that computes without a line is taken for half done after these
_POLL = 0.2  # seconds between two reports
_LEAST = 0.02  # part of a core that is used, below which a process does nothing


class PhaseHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes log lines to stderr, and the last one to the file."""

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one record of vLLM's loggers."""
        super().emit(record)
        if path := os.environ.get(FILE):
            with suppress(OSError):
                Path(path).write_text(" ".join(record.getMessage().split())[:_LENGTH])


def phase_file(directory: Path) -> Path:
    """Return the file of this process in the directory of its slot."""
    return directory / f"phase-{os.getpid()}"


@contextmanager
def reported(progress: Progress, phases: Phases) -> Iterator[None]:
    """Report the phases of what starts in the block, from a thread: also the imports, which take seconds."""
    ended = threading.Event()

    def report() -> None:
        progress(*phases.read())
        while not ended.wait(_POLL):
            progress(*phases.read())

    thread = threading.Thread(target=report, name="phases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def logging_config() -> str:
    """Return the configuration of vLLM's loggers, as JSON for the file that VLLM_LOGGING_CONFIG_PATH names."""
    handler = {
        "class": f"{__name__}.PhaseHandler",
        "level": "INFO",
        "formatter": "vllm",
        "stream": "ext://sys.stderr",
    }
    return json.dumps(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"vllm": {"format": "[%(process)d] [%(levelname)s] vLLM: %(message)s"}},
            "handlers": {"vllm": handler},
            "loggers": {"vllm": {"handlers": ["vllm"], "level": "INFO", "propagate": False}},
        }
    )


class Phases:
    """The progress of a start, from the file of the last line and the processes of this one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._line = ""
        self._worked = 0.0  # seconds of the phase in which processes computed
        self._cpu = 0.0
        self._read_at = time.monotonic()

    def read(self) -> tuple[str, float]:
        """Return the phase, and a share that grows while something computes, ever more slowly: a hung one stops."""
        line = ""
        with suppress(OSError):
            line = self._path.read_text(errors="replace")
        now, cpu = time.monotonic(), _processor_seconds()
        if line != self._line:
            self._line, self._worked = line, 0.0
        elif cpu - self._cpu > _LEAST * (now - self._read_at):
            self._worked += now - self._read_at
        self._cpu, self._read_at = cpu, now
        return f"vLLM: {line}" if line else "starting vLLM", round(1 - 0.5 ** (self._worked / _HALF), 2)


def _processor_seconds() -> float:
    """Return the processor time of this process and of its descendants."""
    total = 0.0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total
