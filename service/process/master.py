"""The Gunicorn master of one generation: readiness, status and watchdog, and the start of the next generation.

Gunicorn's main loop has no hook that is called periodically, so SIGALRM is used. A thread is no option, because the
master forks workers.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from service import logs
from service.contract.devices import Gpu
from service.contract.generations import Generation, generation_directories, worker_states
from service.contract.processes import start_ticks
from service.contract.sleep_order import SleepOrder
from service.contract.successor import Successor
from service.contract.weights_order import WeightsOrderFile
from service.contract.worker_state import WorkerState
from service.handover.fd_passing import Outcome
from service.handover.sockets import SlotSockets
from service.model.release import Release, ReleaseError
from service.process import gpus
from service.process.descriptors import Descriptors
from service.process.sdnotify import ServiceManager
from service.routing.ownership import Gate
from service.settings import Settings

__all__ = ["NOT_READY", "Master"]

NOT_READY = 3
"""Exit status of a generation that could not become ready; the unit does not restart after it. Gunicorn's own."""

_TICK_LOADING = 0.1  # seconds
_TICK_READY = 1.0
_TICK_FORWARDING = 0.02
_ATTEMPTS = 3  # loads of each worker that may extend the start timeout
_MAX_SILENCE = 5.0  # seconds; a ready worker gives a sign of life every second, and counts as hung beyond this time
_KEPT_GENERATIONS = 16  # of a slot, whose state files are kept for receipts

logger = logging.getLogger("gunicorn.error")


@dataclass
class Master:
    """One generation, in its master; workers inherit this object by fork."""

    settings: Settings
    release: Release
    record: Generation
    directory: Path
    sockets: SlotSockets
    manager: ServiceManager
    descriptors: Descriptors
    gpus: tuple[Gpu, ...] = ()
    """One for each worker; none on the CPU."""
    import_seconds: float = 0.0
    """How long the imports took that every worker is forked with."""
    _is_recorded: bool = True  # False while the record cannot be written, which is logged once
    _started: set[int] = field(default_factory=set)  # pids of all workers that have been seen loading
    _progress: set[object] = field(default_factory=set)  # every state of the load that has been seen

    @classmethod
    def begin(cls, server: Any) -> Master:
        """Claim the slot's next generation number and bind its sockets.

        Exits with NOT_READY without a listening socket, or if the slot has no release that can be served with its GPUs.
        """
        settings = Settings()  # from the environment
        manager, descriptors = ServiceManager(), Descriptors.take()
        if not descriptors.listeners and not settings.bind:
            _refuse(
                manager,
                "glm.socket passed no listening socket (`glmctl doctor` shows why); "
                "without systemd, GLM_BIND=HOST:PORT names the address",
            )
        try:
            release = Release.read((settings.root / settings.slot).resolve(strict=True))
        except (OSError, ReleaseError) as error:
            _refuse(manager, f"slot {settings.slot} holds no release that can be served: {error}")
        try:
            of_workers = gpus.find(release, settings)
        except gpus.GpusError as error:
            _refuse(manager, str(error))
        settings = settings.model_copy(update={"workers": len(of_workers) or settings.workers or 1})
        slot_directory = settings.runtime / settings.slot
        try:
            slot_directory.mkdir(parents=True, exist_ok=True)
            number, directory = _claim(slot_directory)
            sockets = SlotSockets.bind(slot_directory, directory)
        except OSError as error:
            _refuse(manager, f"cannot write to {slot_directory}: {error.strerror or error}")
        record = Generation(
            generation=number,
            slot=settings.slot,
            version=release.version,
            release=str(release.path),
            master=os.getpid(),
            start_ticks=start_ticks(os.getpid()),
            parent=server.master_pid or None,
            workers_wanted=settings.workers,
        )
        master = cls(settings, release, record, directory, sockets, manager, descriptors, of_workers)
        master.publish()
        logs.describe_process(slot=settings.slot, generation=number)
        return master

    @property
    def pid(self) -> int:
        """The pid of the master."""
        return self.record.master

    @property
    def gate(self) -> Gate:
        """The gate of this generation."""
        return Gate(self.settings.root, self.settings.runtime, self.sockets.handoff_inode)

    @property
    def weights_order(self) -> WeightsOrderFile:
        """The controller's order to the workers of this generation."""
        return WeightsOrderFile(self.settings.root, self.settings.slot, self.directory)

    @property
    def sleep_order(self) -> SleepOrder:
        """The controller's order to the workers of this generation to sleep."""
        return SleepOrder(self.directory)

    # called in the workers

    @property
    def is_running(self) -> bool:
        """Whether the master of this worker is still running."""
        return os.getppid() == self.pid

    def withdraw(self) -> None:
        """Withdraw the generation's sockets, in place of the master."""
        self.sockets.withdraw()

    def store(self, client: socket.socket) -> Outcome:
        """Leave a client's connection to the service manager, for the unit's next master."""
        return self.descriptors.store(client, self.manager)

    def present_release(self) -> Release:
        """Return the release that workers load: the one the master started with, or that of a weight swap since."""
        version = self.weights_order.version(self.release.version)
        if version == self.release.version:
            return self.release
        try:
            return Release.read((self.settings.root / "releases" / version).resolve())
        except ReleaseError as error:
            logger.error("%s", error)  # noqa: TRY400
            return self.release

    def supervise(self, server: Any) -> None:
        """Set number of workers, signal handlers and timer, after Gunicorn has its sockets and before it forks."""
        server.cfg.set("workers", self.settings.workers)
        server.num_workers = self.settings.workers
        server.cfg.set("daemon", True)  # from here on only the WINCH handler reads it, which does nothing without it
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda sig, frame: self._stop(server, sig, frame))
        signal.signal(signal.SIGALRM, lambda *_: self._tick(server))
        _set_tick(_TICK_READY if self.record.ready else _TICK_LOADING)

    def end(self) -> None:
        """Withdraw the sockets, and report the reason if the generation did not become ready."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        errors = [state.error for state in worker_states(self.directory) if state.error]
        if errors and not self.record.ready:
            self.manager.status(f"failed: {errors[0]}")
        self.sockets.withdraw()

    def begin_successor(self, server: Any) -> None:
        """Prepare the re-execution by USR2; called in the forked child.

        The successor expects systemd's listening sockets at descriptor 3 and up, and Gunicorn has moved them elsewhere.
        Interpreter and settings come from the file that the reload wrote, not from this master's own environment.
        """
        high = [fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD, 100) for listener in server.LISTENERS]
        for descriptor, listener in enumerate(high, start=3):
            os.dup2(listener, descriptor, inheritable=True)
            os.close(listener)
        command = Successor.read(self.directory).enter(server.cfg.env_orig)
        server.START_CTX.update({0: command[0], "args": command})

    def publish(self) -> None:
        """Write the generation's record."""
        self.record.version, self.record.release = self.release.version, str(self.release.path)
        try:
            self.record.write(self.directory)
        except OSError as error:  # a full disk must not stop the service; the next tick tries again
            if self._is_recorded:
                logger.error("cannot write the record of generation %s: %s", self.record.generation, error)  # noqa: TRY400
            self._is_recorded = False
        else:
            self._is_recorded = True

    def _stop(self, server: Any, sig: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:  # in a child that has not installed its own signal handlers yet
            os._exit(0)
        if not self.record.stopping:
            self.record.stopping = True
            if self.record.ready:
                self._forward(server)
            if self.sockets.are_published:  # else a successor serves the slot, and the unit does not stop
                self.manager.stopping()
            self.sockets.withdraw()
            self.publish()
        server.signal(sig, frame)

    def _tick(self, server: Any) -> None:
        if os.getpid() != self.pid:
            return
        try:
            workers = [state for state in worker_states(self.directory) if state.pid in server.WORKERS]
            if self.record.ready and (self.descriptors.clients or not workers):
                self._forward(server)
            if self.record.ready and not self.record.stopping and not self.sockets.are_published:
                return  # the successor sends the unit's notifications now
            release = self.present_release()
            if release is not self.release or Generation.read_record(self.directory) is None:
                self.release = release
                self.publish()
            if self.record.stopping:
                self._report_draining(workers)
            elif self.record.ready:
                self._report_serving(server, workers)
            else:
                self._report_loading(workers, server.num_workers)
        except Exception:  # an exception in a signal handler would surface anywhere in Gunicorn's loop
            logger.exception("the master's tick failed")

    def _forward(self, server: Any) -> None:
        """Pass on stored connections; without workers (after WINCH) those in the backlog, once another slot is live."""
        vacated = not server.WORKERS and server.num_workers == 0
        owner = self.gate.owner()
        if owner:
            self.descriptors.pass_clients(owner, self.manager)
        if vacated and owner and not self.gate.is_open():
            self.sockets.forward(owner)
        _set_tick(_TICK_FORWARDING if vacated or self.descriptors.clients else _TICK_READY)

    def _report_loading(self, workers: list[WorkerState], wanted: int) -> None:
        if len(workers) >= wanted > 0 and all(worker.phase == "ready" for worker in workers):
            self._become_ready()
            return
        if not workers:
            return
        slowest = min(workers, key=lambda worker: worker.progress)
        step = slowest.step or slowest.phase
        self.manager.status(f"{self.release.version}: {step}, {slowest.progress:.0%}")
        # A load without progress ends at the unit's start timeout, and so does one that crashes again and again.
        self._started |= {worker.pid for worker in workers}
        attempt = min(len(self._started), _ATTEMPTS * wanted)
        progress = (attempt, *sorted((worker.phase, worker.step, worker.progress) for worker in workers))
        if progress not in self._progress:
            self._progress.add(progress)
            self.manager.extend_timeout(self.settings.load_stall)

    def _become_ready(self) -> None:
        """Publish http.sock before READY=1; handoff.sock last, because it grants ownership."""
        self.record.ready = True
        self.publish()
        self.sockets.publish("http.sock")
        self.manager.ready(self.pid)
        self.sockets.publish("handoff.sock")
        self.manager.status(f"{self.release.version}: ready")
        logger.info("generation %s of %s is ready", self.record.generation, self.settings.slot)
        _set_tick(_TICK_FORWARDING if self.descriptors.clients else _TICK_READY)

    def _report_serving(self, server: Any, workers: list[WorkerState]) -> None:
        gate = "open" if self.gate.is_open() else "closed"
        in_flight = sum(worker.in_flight for worker in workers)
        asleep = bool(workers) and all(worker.phase == "asleep" for worker in workers)
        doing = "asleep" if asleep else f"gate {gate}, {in_flight} in flight"
        self.manager.status(f"{self.release.version}: {doing}")
        if all(_is_healthy(worker, server.WORKERS[worker.pid].tmp.last_update()) for worker in workers):
            self.manager.watchdog()

    def _report_draining(self, workers: list[WorkerState]) -> None:
        in_flight = sum(worker.in_flight for worker in workers)
        self.manager.status(f"{self.release.version}: leaving, {in_flight} in flight")
        if workers:  # each worker has its own drain deadline; systemd's stop timeout must not end it earlier
            self.manager.extend_timeout(10)


def _refuse(manager: ServiceManager, reason: str) -> NoReturn:
    logger.error("%s", reason)
    manager.status(f"failed: {reason}")
    sys.exit(NOT_READY)


def _set_tick(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)


def _is_healthy(worker: WorkerState, notified_at: float) -> bool:
    """Return whether a worker is loading, or ready with an engine that makes progress and a recent sign of life.

    `notified_at`: its last notification of Gunicorn (CLOCK_MONOTONIC), once a second. Its state file may be old on a
    full disk.
    """
    return worker.phase != "ready" or (worker.answering and time.monotonic() - notified_at < _MAX_SILENCE)


def _claim(slot_directory: Path) -> tuple[int, Path]:
    """Create the directory of the next generation, and remove those of old ones; returns its number and path."""
    taken = sorted(int(path.name) for path in generation_directories(slot_directory.parent, slot_directory.name))
    for old in taken[:-_KEPT_GENERATIONS]:
        record = Generation.read_record(slot_directory / str(old))
        if record is None or not record.is_alive:
            shutil.rmtree(slot_directory / str(old), ignore_errors=True)
    number = taken[-1] + 1 if taken else 1
    while True:
        directory = slot_directory / str(number)
        try:
            directory.mkdir()
        except FileExistsError:
            number += 1
        else:
            return number, directory
