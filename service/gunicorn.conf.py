"""Gunicorn's configuration: the settings, and where the generation hooks into the master's life."""

from typing import Any

from service import metrics
from service.process.master import Generation
from service.settings import Settings

_settings = Settings()  # from the environment

bind = ["127.0.0.1:8000"]  # only when started by hand: under systemd the socket unit brings the listener
worker_class = "service.process.worker.SlotWorker"
workers = _settings.workers
timeout = 30  # seconds without a sign of life after which a worker is replaced
graceful_timeout = _settings.drain + 5  # the worker keeps its drain time itself; this only backs it up
keepalive = _settings.keep_alive
control_socket_disable = True  # it is one file per user, and two slots would fight for it
preload_app = False
proc_name = f"glm@{_settings.slot}"


def on_starting(server: Any) -> None:
    """Before the listeners are taken over: who are we, and what do we serve?"""
    server.generation = Generation.begin(server)


def when_ready(server: Any) -> None:
    """The listeners stand, no worker does yet."""
    server.generation.supervise(server)


def on_reload(server: Any) -> None:
    """HUP has read a fresh configuration."""
    server.generation.supervise(server)


def post_fork(server: Any, worker: Any) -> None:
    """In the worker: it belongs to this generation."""
    worker.generation = server.generation


def pre_exec(server: Any) -> None:
    """In the child that becomes the next master (USR2)."""
    server.generation.begin_next(server)


def child_exit(server: Any, worker: Any) -> None:  # noqa: ARG001  (Gunicorn looks at the names)
    """A worker is gone; so is what it had in flight."""
    metrics.forget(worker.pid)


def on_exit(server: Any) -> None:
    """The master leaves."""
    server.generation.end()
