"""The Gunicorn worker: loads the model, lets it prove itself, then serves."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

from uvicorn.config import Config
from uvicorn_worker import UvicornWorker

from service import metrics
from service.app import Identity, create_app
from service.chat.admission import Turnstile
from service.contract.worker_state import Account
from service.engine.model_engine import Limits, ModelEngine
from service.handover.connection import Connection
from service.handover.server import SlotServer
from service.model.release import Release, ReleaseError
from service.process.checks import CheckFailed, run_checks
from service.process.master import NOT_READY, Generation
from service.process.weight_swap import Changes

_RESPAWN_PAUSE = 1.0  # seconds before a worker that cannot load lets the master try another

logger = logging.getLogger("gunicorn.error")


class SlotWorker(UvicornWorker):  # type: ignore[misc]  # Gunicorn's classes carry no types
    """One process, one model, one device."""

    generation: Generation
    """Set by the `post_fork` hook."""
    release: Release
    """What this worker loads."""

    def load_wsgi(self) -> None:
        """Do nothing: the application is made around an engine, which takes a while to load."""

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Leave at once; while a model loads there is nothing to finish."""
        os._exit(0)

    def run(self) -> None:
        """Load, prove, serve; leaves with NOT_READY if that ends before the generation was ready."""
        generation = self.generation
        self.release = generation.present_release()
        account = Account(
            generation.directory / f"{os.getpid()}.json",
            generation.settings.slot,
            generation.number,
            self.release.version,
        )
        for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_quit)
        try:
            asyncio.run(self._load_and_serve(account))
        except (ReleaseError, CheckFailed) as error:
            self._give_up(account, str(error))
        except (MemoryError, RuntimeError, OSError) as error:
            logger.exception("the worker failed")
            self._give_up(account, f"{type(error).__name__}: {error}")

    async def _load_and_serve(self, account: Account) -> None:
        beat = asyncio.create_task(self._beat(account))
        engine = await self._prepare(account)
        beat.cancel()
        generation = self.generation
        settings = generation.settings
        server: SlotServer
        identity = Identity(self.release.version, settings.slot, generation.number)
        turnstile = Turnstile(identity)
        app = create_app(engine, identity, settings, serving=lambda: server.is_serving, turnstile=turnstile)

        async def still_well() -> None:
            account.answering = engine.answering()
            if account.answering:  # a worker whose engine hangs is silent, and Gunicorn replaces it
                self.notify()

        config = Config(
            app,
            http=Connection,
            loop="asyncio",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive,
            timeout_notify=1,
            callback_notify=still_well,
        )
        config.load()
        server = SlotServer(
            config,
            settings,
            generation.gate,
            account,
            public=[listener.sock for listener in self.sockets],
            door=generation.doors.http,
            handoff=generation.doors.handoff,
            has_siblings=lambda: os.getppid() == generation.master,
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.handle_exit, signal.SIGQUIT, None)
        account.phase, account.step, account.progress = "ready", "", 1.0
        account.write()
        changes = asyncio.create_task(Changes(engine, turnstile, identity, account, generation.orders).follow())
        await server.serve(sockets=[])
        changes.cancel()
        engine.close()

    async def _prepare(self, account: Account) -> ModelEngine:
        """Load the model, warm it up, ask the release's own checks."""
        settings = self.generation.settings

        def progress(step: str, share: float) -> None:
            account.step, account.progress = step, share

        began = time.monotonic()
        engine = await asyncio.to_thread(
            ModelEngine.load,
            self.release,
            threads=settings.threads or max(1, (os.cpu_count() or 1) // settings.workers - 1),
            limits=Limits(settings.max_prompt_tokens, settings.max_wait, settings.max_seconds, settings.stall),
            progress=progress,
        )
        account.phase = "warming up"
        await asyncio.to_thread(engine.warm_up, progress)
        account.phase = "checking"
        await run_checks(engine, self.release, progress)
        gc.collect()
        gc.freeze()  # a full collection would look through all that was imported, and stop everybody for 0.2 s
        metrics.set_load_seconds(self.release.version, settings.slot, time.monotonic() - began)
        return engine

    async def _beat(self, account: Account) -> None:
        """Keep the master and the state file informed while the model loads in its thread."""
        while True:
            self.notify()
            account.write()
            await asyncio.sleep(0.1)

    def _give_up(self, account: Account, reason: str) -> None:
        logger.error("%s cannot serve: %s", account.version, reason)
        account.phase, account.error = "failed", reason
        account.write()
        if not self._generation_is_ready():
            sys.exit(NOT_READY)
        time.sleep(_RESPAWN_PAUSE)  # siblings serve on, or clients wait; the master tries again
        sys.exit(1)

    def _generation_is_ready(self) -> bool:
        with suppress(OSError):
            return '"ready": true' in (self.generation.directory / "generation.json").read_text()
        return self.generation.ready
