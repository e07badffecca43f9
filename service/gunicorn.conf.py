"""Gunicorn's configuration: the settings, and the hooks that connect the generation's Master to the arbiter.

The number of workers depends on the release and on the GPUs of the host: the master sets it.
"""

from typing import Any

from service import metrics
from service.engine import loader
from service.process import gpus
from service.process.master import Master
from service.settings import Settings

_settings = Settings()  # from the environment

bind = [_settings.bind] if _settings.bind else []  # under systemd glm.socket passes the listening socket
logger_class = "service.logs.gunicorn_logger.GunicornLogger"
worker_class = "service.process.worker.SlotWorker"
timeout = 30  # seconds without a sign of life after which a worker is replaced
graceful_timeout = _settings.drain + 5  # the worker keeps the drain time itself; this is the upper limit
keepalive = _settings.keep_alive
control_socket_disable = True  # its default is one file per user, which two slots would share
preload_app = False
proc_name = f"glm@{_settings.slot}"


def on_starting(server: Any) -> None:
    """Claim the slot's next generation, before the listeners are taken over, and import what every worker needs."""
    server.master = Master.begin(server)
    metrics.forget_ended()
    server.master.manager.status(f"{server.master.release.version}: importing")
    server.master.import_seconds = loader.preload(_settings, server.master.release.engine.engine)


def when_ready(server: Any) -> None:
    """Supervise, once the listeners exist and before the first worker does."""
    server.master.supervise(server)


def on_reload(server: Any) -> None:
    """Supervise again after HUP, which resets the signal handlers."""
    server.master.supervise(server)


def pre_fork(server: Any, worker: Any) -> None:
    """Choose the worker's GPU. In the master, where Gunicorn keeps the worker for as long as its process runs."""
    worker.gpu = gpus.free(server.master.gpus, [running.gpu for running in server.WORKERS.values()])


def post_fork(server: Any, worker: Any) -> None:
    """Give the worker its generation, and its GPU before anything can use another one."""
    worker.master = server.master
    worker.master.descriptors.close_clients()
    if worker.gpu:
        gpus.pin(worker.gpu)


def pre_exec(server: Any) -> None:
    """Prepare the child that becomes the next master (USR2)."""
    server.master.begin_successor(server)


def child_exit(server: Any, worker: Any) -> None:  # noqa: ARG001  (Gunicorn passes arguments by name)
    """Remove the gauges of a worker that has gone, and merge its counters."""
    metrics.forget_worker(worker.pid)


def on_exit(server: Any) -> None:
    """Withdraw the generation's sockets."""
    server.master.end()
