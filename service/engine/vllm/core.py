"""vLLM's core process: started, tied to this one, and started again when it has died."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from service.contract import atomic, processes
from service.engine.vllm.bound import children_bound
from service.engine.vllm.llm import AsyncLLM, Backend

__all__ = ["Core"]

_POLL = 0.25  # seconds between two looks at the core
_GRACE = 30.0  # seconds in which processes that were killed must end

logger = logging.getLogger("gunicorn.error")


class Core:
    """vLLM with its processes. `start`, `watch` and `successor` must be called on one event loop.

    The processes are recorded in `directory`, so that the next worker of the slot can wait until they have ended.
    """

    def __init__(self, backend: Backend, model: Path, directory: Path) -> None:
        self._backend, self._directory = backend, directory
        self.model = model
        """The checkpoint whose weights it has, which another core would load."""
        self.starting = self.asleep = False
        self.failed: BaseException | None = None
        """Why another core could not be started."""
        self._llm: AsyncLLM | None = None
        self._renewed = asyncio.Event()
        self._closed = False

    @property
    def llm(self) -> AsyncLLM:
        """The present one."""
        assert self._llm
        return self._llm

    async def start(self) -> None:
        """Start it, after the processes of earlier workers have ended; blocks the event loop. Raises ReleaseError."""
        self.starting = True
        try:
            _end_leftovers(self._directory)
            with children_bound():
                self._llm = self._backend.start(self.model)
            self._record()
        finally:
            self.starting = False

    async def watch(self) -> None:
        """Start another core when this one has died; returns when none can be started, or at the end."""
        while not self._closed:
            await asyncio.sleep(_POLL)
            if not self.llm.errored or self._closed or self.asleep:
                continue
            logger.error("vLLM's core process has died; another one is started, and answers go on with it")
            self._end()
            try:
                await self.start()
            except Exception as error:
                logger.exception("another core cannot be started")
                self.failed = error
            self._renewed.set()
            self._renewed = asyncio.Event()
            if self.failed:
                return

    async def sleep(self, seconds: float) -> None:
        """Free the memory of the device; the weights stay in that of the host. Call it while no request runs.

        A core that dies while it sleeps is replaced when it is to wake up: until then another one has the device.
        Raises what prevents it, and TimeoutError if the core does nothing for `seconds`.
        """
        self.asleep = True
        llm = self.llm
        async with asyncio.timeout(seconds):
            await llm.reset_encoder_cache()  # features of pictures are not in the memory that sleep frees
            await llm.sleep(level=1, mode="wait")
            await llm.check_health()

    async def wake_up(self, seconds: float) -> None:
        """Take the memory again; if the core has died or dies, another one is started.

        Raises what prevents it, and TimeoutError if the core does nothing for `seconds`.
        """
        llm = self.llm
        try:
            if not llm.errored:
                async with asyncio.timeout(seconds):
                    await llm.wake_up()
        except Exception:
            if not llm.errored:
                raise
        finally:
            self.asleep = False
        if llm.errored:
            await self.successor(llm)

    async def successor(self, llm: AsyncLLM) -> AsyncLLM:
        """Return what has replaced `llm`; raises RuntimeError if nothing can."""
        while self._llm is llm and not self.failed and not self._closed:
            await self._renewed.wait()
        if self.failed or self._closed:
            raise RuntimeError("vLLM's core process has died, and another one cannot be started")
        return self.llm

    def close(self) -> None:
        """End the processes."""
        self._closed = True
        self._renewed.set()
        if self._llm:
            self._end()

    def _end(self) -> None:
        """Kill what is left of the processes: TERM, which they block, would be waited for."""
        for pid in _processes():
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        with suppress(Exception):  # it tells processes that have ended to end
            self.llm.shutdown(timeout=0)
        for name in (f"core-{os.getpid()}.json", f"phase-{os.getpid()}"):
            (self._directory / name).unlink(missing_ok=True)

    def _record(self) -> None:
        found = [(pid, processes.start_ticks(pid)) for pid in _processes()]
        with suppress(OSError):  # a full disk: then the next worker does not wait for them
            atomic.write_text(self._directory / f"core-{os.getpid()}.json", json.dumps(found))


def _processes() -> list[int]:
    """Return the pids of the core and of its descendants."""
    found = []
    for child in multiprocessing.active_children():
        with suppress(psutil.Error):
            core = psutil.Process(child.pid)
            found += [core.pid, *(process.pid for process in core.children(recursive=True))]
    return found


def _end_leftovers(directory: Path) -> None:
    """Kill the recorded processes of workers that have ended, and wait until they have freed their memory."""
    deadline = time.monotonic() + _GRACE
    for path in directory.glob("core-*.json"):
        pid = path.stem.removeprefix("core-")
        if pid.isdigit() and int(pid) != os.getpid() and processes.start_ticks(int(pid)) is not None:
            continue
        while (left := list(_alive(path))) and time.monotonic() < deadline:
            for each in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(each, 9)
            time.sleep(0.05)
        path.unlink(missing_ok=True)
        path.with_name(f"phase-{pid}").unlink(missing_ok=True)


def _alive(path: Path) -> Iterator[int]:
    with suppress(OSError, ValueError, TypeError):
        for pid, ticks in json.loads(path.read_text()):
            if processes.is_alive(pid, ticks):
                yield pid
