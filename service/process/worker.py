"""The Gunicorn worker: loads the model, warms it up, runs the release's checks, then serves."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from types import FrameType

from uvicorn.config import Config
from uvicorn_worker import UvicornWorker

from service import metrics
from service.api.keys import ApiKeys, KeysError
from service.app import create_app
from service.chat.admission import Admission
from service.contract.devices import Gpu, label
from service.contract.generations import Generation
from service.contract.worker_state import WorkerState, WorkerStateFile
from service.engine import WorkerEngine, loader
from service.handover.connection import Connection
from service.handover.server import SlotServer
from service.host_metrics import HostCollector
from service.identity import Identity
from service.model.release import Release, ReleaseError
from service.process import gpus
from service.process.checks import CheckFailed, run_checks
from service.process.load_times import LoadTimes
from service.process.master import NOT_READY, Master
from service.process.sleep import Sleeper, until_withdrawn
from service.process.weight_swap import WeightSwapper
from service.telemetry import sentry

__all__ = ["SlotWorker"]

_RESPAWN_PAUSE = 1.0  # seconds until a worker that cannot load exits; the master starts another at once

logger = logging.getLogger("gunicorn.error")


class SlotWorker(UvicornWorker):  # type: ignore[misc]  # Gunicorn's classes carry no types
    """One process with one model on one device."""

    master: Master
    """Set by the `post_fork` hook."""
    gpu: Gpu | None = None
    """The only one that it sees, set by the `pre_fork` hook; None on the CPU."""
    release: Release
    """The release that this worker loads."""
    state_file: WorkerStateFile

    def load_wsgi(self) -> None:
        """Do nothing: the application is created later, because it needs the engine."""

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Exit at once; for the time of the load, when there are no requests to finish."""
        os._exit(0)

    def run(self) -> None:
        """Load the model, run the checks, and serve. Exits with NOT_READY if the generation never became ready."""
        self.release = self.master.present_release()
        state = WorkerState.of_this_process(
            slot=self.master.settings.slot,
            generation=self.master.record.generation,
            version=self.release.version,
            device=label(self.gpu),
        )
        self.state_file = WorkerStateFile(self.master.directory / f"{state.pid}.json", state)
        for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_quit)
        self._sentry = sentry.start(self.master.settings, state)
        try:
            asyncio.run(self._load_and_serve())
        except (ReleaseError, CheckFailed, KeysError) as error:
            self._fail(str(error))
        except (MemoryError, RuntimeError, OSError) as error:
            logger.exception("the worker failed")
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self._close_sentry()

    def _close_sentry(self) -> None:
        if self._sentry:
            self._sentry.close()

    async def _load_and_serve(self) -> None:
        keys = ApiKeys.of(self.master.settings)  # first: without them nothing is answered
        heartbeat = asyncio.create_task(self._heartbeat())
        engine = await self._prepare()
        heartbeat.cancel()
        master, state = self.master, self.state_file.state
        settings = master.settings
        server: SlotServer
        identity = Identity(self.release.version, settings.slot, master.record.generation)
        admission = Admission(identity)
        metrics.HOST.register(HostCollector(settings))
        app = create_app(engine, identity, settings, serving=lambda: server.is_serving, admission=admission, keys=keys)

        async def notify_while_healthy() -> None:
            metrics.Metrics(identity.version, identity.slot).set_engine_usage(engine.usage())
            state.answering = engine.answering()
            if state.answering:  # else Gunicorn replaces the worker after its timeout
                self.notify()

        config = Config(
            app,
            http=Connection,
            loop="asyncio",  # uvloop would read from a connection that was passed on as soon as it arrived
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive,
            timeout_notify=0,  # seconds: as often as Uvicorn looks, every 100 ms
            callback_notify=notify_while_healthy,
        )
        config.load()
        server = SlotServer(
            config,
            settings,
            master.gate,
            self.state_file,
            public=[listener.sock for listener in self.sockets],
            internal=master.sockets.http,
            handoff=master.sockets.handoff,
            supervisor=master,
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.handle_exit, signal.SIGQUIT, None)
        state.phase, state.step, state.progress = "ready", "", 1.0
        self.state_file.publish()
        swapper = WeightSwapper(engine, admission, identity, self.state_file, master.weights_order)
        following = [asyncio.create_task(swapper.follow())]
        if state.can_sleep:
            sleeper = Sleeper(engine, server, self.state_file, master.sleep_order)
            following.append(asyncio.create_task(sleeper.follow()))
        await server.serve(sockets=[])
        master.manager.barrier()
        if not master.is_running:  # systemd starts the next one when this process has exited
            metrics.forget_worker(state.pid)
            self._close_sentry()
            os._exit(0)
        for task in following:
            task.cancel()
        engine.close()

    async def _prepare(self) -> WorkerEngine:
        """Load the model, warm it up, run the release's checks."""
        settings, state = self.master.settings, self.state_file.state
        if self.master.sleep_order.is_given:  # it takes the place of a worker that slept
            state.phase = "asleep"
            await until_withdrawn(self.master.sleep_order)
            state.phase = "loading"
        times = LoadTimes(self.master.import_seconds if not self.master.record.ready else 0.0)

        def progress(step: str, share: float) -> None:
            times.enter(step)
            state.step, state.progress, state.load = step, share, times.parts

        release = gpus.on_pinned_gpu(self.release) if self.gpu else self.release
        engine = await asyncio.to_thread(loader.load, release, settings, progress, self.gpu)
        state.phase, state.memory = "warming up", engine.memory
        await asyncio.to_thread(engine.warm_up, progress)
        state.phase = "checking"
        await run_checks(engine, self.release, progress)
        gc.collect()
        gc.freeze()  # else a full collection would visit all imported objects, and delay every request by 0.2 s
        times.enter("")
        state.load, state.can_sleep = times.parts, engine.can_sleep
        metrics.set_load_seconds(self.release.version, settings.slot, state.load)
        metrics.set_device(settings.slot, state.device)
        return engine

    async def _heartbeat(self) -> None:
        """Notify Gunicorn and publish the state while the model loads in a thread."""
        while self.master.is_running:  # else the generation cannot become ready
            self.notify()
            self.state_file.publish()
            await asyncio.sleep(0.1)
        os._exit(NOT_READY)

    def _fail(self, reason: str) -> None:
        state = self.state_file.state
        logger.error("%s cannot serve: %s", state.version, reason)
        state.phase, state.error = "failed", reason
        self.state_file.publish()
        record = Generation.read_record(self.master.directory) or self.master.record
        if not record.ready:
            sys.exit(NOT_READY)
        time.sleep(_RESPAWN_PAUSE)
        sys.exit(1)
