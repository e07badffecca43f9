"""Exceptions that were logged, for Sentry: where they were raised, and nothing of what clients sent."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from service.contract.worker_state import WorkerState
from service.settings import Settings

if TYPE_CHECKING:
    from sentry_sdk.types import Event, Hint

__all__ = ["LOGGERS", "SentryHandler", "start"]

WINDOW = 1.0  # seconds
MAX_EVENTS = 10  # in a window: the stack of an exception takes a millisecond to describe
LOGGERS = ("", "gunicorn.error", "service")
"""Those that have handlers of their own; see `logs/gunicorn_logger.py`."""

_CLOSE = 2.0  # seconds for what is left
_SENT_ALREADY = "is_sent_to_sentry"  # an attribute of records
_TEXT = "(the journal has the text)"
_SENT = ("event_id", "timestamp", "level", "logger", "platform", "release", "server_name", "tags", "exception")
_SENT_OF_EXCEPTION = ("type", "module", "mechanism", "stacktrace")
_SENT_OF_FRAME = (
    *("filename", "abs_path", "function", "module", "lineno"),
    *("context_line", "pre_context", "post_context", "in_app"),
)

log = logging.getLogger("service")


class SentryHandler(logging.Handler):
    """Sends the exception of a record to Sentry, with the request, version, slot and generation as tags.

    Left out is everything that may hold what a client has sent, or a key: the text of the exception and of the record,
    local variables, headers, bodies, breadcrumbs. What is sent is listed here field by field, so that a later version
    of sentry-sdk adds nothing. A thread of sentry-sdk sends it, with a bounded queue.
    """

    def __init__(self, dsn: str, state: WorkerState, **options: Any) -> None:
        """Raises ImportError without sentry-sdk, and ValueError if `dsn` is none. `options` are of its Client."""
        from sentry_sdk import Client
        from sentry_sdk.utils import event_from_exception

        super().__init__(logging.ERROR)
        self._state = state
        self._window, self._sent = float("-inf"), 0
        self._describe = event_from_exception
        self.client = Client(
            dsn,
            **options,
            default_integrations=False,
            auto_enabling_integrations=False,
            include_local_variables=False,
            max_request_body_size="never",
            max_breadcrumbs=0,
            traces_sample_rate=None,
            auto_session_tracking=False,
            send_client_reports=False,
            shutdown_timeout=_CLOSE,
            before_send=_only_what_is_listed,
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record's exception, if it has one; at most MAX_EVENTS in a second."""
        if not record.exc_info or not record.exc_info[1] or hasattr(record, _SENT_ALREADY) or not self._has_room():
            return
        setattr(record, _SENT_ALREADY, True)  # by the handler of a logger, before that of those above it
        try:
            event, hint = self._describe(record.exc_info, self.client.options, {"type": "logging", "handled": True})
            event["logger"], event["release"] = record.name, self._state.version
            tags: dict[str, Any] = {
                "version": self._state.version,
                "slot": self._state.slot,
                "generation": str(self._state.generation),
                "worker": str(os.getpid()),
            }
            if request_id := getattr(record, "request_id", None):
                tags["request_id"] = request_id
            event["tags"] = tags
            self.client.capture_event(event, hint)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Send what is left, for two seconds at most."""
        self.client.close(_CLOSE)
        super().close()

    def _has_room(self) -> bool:
        now = time.monotonic()
        if now - self._window >= WINDOW:
            self._window, self._sent = now, 0
        self._sent += 1
        return self._sent <= MAX_EVENTS


def start(settings: Settings, state: WorkerState) -> SentryHandler | None:
    """Send the exceptions of this process from now on, if the settings have a DSN; logs why that is not possible."""
    dsn = settings.sentry_dsn.get_secret_value() if settings.sentry_dsn else ""
    if not dsn:
        return None
    try:
        handler = SentryHandler(dsn, state)
    except ImportError:
        log.warning("GLM_SENTRY_DSN has no effect: install the extra, pip install 'glm-handover[sentry]'")
        return None
    except ValueError as error:
        log.warning("GLM_SENTRY_DSN has no effect: it is no DSN, %s", error)
        return None
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    return handler


def _only_what_is_listed(event: Event, _hint: Hint) -> Event:
    kept: Any = {name: value for name, value in event.items() if name in _SENT}
    kept["exception"] = {"values": [_exception(value) for value in event["exception"]["values"]]}
    result: Event = kept
    return result


def _exception(value: dict[str, Any]) -> dict[str, Any]:
    kept = {name: part for name, part in value.items() if name in _SENT_OF_EXCEPTION} | {"value": _TEXT}
    if stack := kept.get("stacktrace"):
        frames = [{name: frame[name] for name in _SENT_OF_FRAME if name in frame} for frame in stack["frames"]]
        kept["stacktrace"] = {"frames": frames}
    if "mechanism" in kept:
        kept["mechanism"] = {name: kept["mechanism"].get(name) for name in ("type", "handled")}
    return kept
