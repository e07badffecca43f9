"""Notifications to systemd (sd_notify). Only the master sends them: a worker does not know the other workers."""

from __future__ import annotations

import os

import sdnotify

__all__ = ["ServiceManager"]


class ServiceManager:
    """The service manager that started the unit; without $NOTIFY_SOCKET every call does nothing."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()  # reads $NOTIFY_SOCKET
        # Gunicorn would send READY=1 before the model is loaded.
        os.environ.pop("NOTIFY_SOCKET", None)
        self._status = ""

    def ready(self, pid: int) -> None:
        """Report that the generation of the master `pid` is ready, and make it the unit's main process."""
        self._notifier.notify(f"MAINPID={pid}\nREADY=1")

    def status(self, text: str) -> None:
        """Set the status line of `systemctl status`; sent only if it has changed."""
        if text != self._status:
            self._notifier.notify(f"STATUS={text}")
            self._status = text

    def extend_timeout(self, seconds: float) -> None:
        """Extend the unit's start or stop timeout to `seconds` from now."""
        self._notifier.notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def watchdog(self) -> None:
        """Reset the unit's watchdog."""
        self._notifier.notify("WATCHDOG=1")

    def stopping(self) -> None:
        """Report that the unit is stopping."""
        self._notifier.notify("STOPPING=1")
