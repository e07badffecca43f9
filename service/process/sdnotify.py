"""Notifications to systemd (sd_notify), sent by the master alone: a worker cannot speak for the others."""

from __future__ import annotations

import os

import sdnotify

__all__ = ["ServiceManager"]


class ServiceManager:
    """The service manager that started the unit; without $NOTIFY_SOCKET every call does nothing."""

    def __init__(self) -> None:
        # sdnotify reads the variable here. It is removed then: Gunicorn would send READY=1 before a model is loaded.
        self._notifier = sdnotify.SystemdNotifier()
        os.environ.pop("NOTIFY_SOCKET", None)
        self._status = ""

    def ready(self, pid: int) -> None:
        """Report that the generation of the master `pid` is ready, and that it is the unit's main process now."""
        self._notifier.notify(f"MAINPID={pid}\nREADY=1")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`; sent only when it changes."""
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
