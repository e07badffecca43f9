"""What the master says to systemd. It alone speaks, so that no worker can vouch for another."""

from __future__ import annotations

import os

import sdnotify


class Manager:
    """The service manager that started us, or nobody when the server was started by hand."""

    def __init__(self) -> None:
        # sdnotify reads the variable here; then it must go, or Gunicorn would say READY=1 before a model is loaded
        self._notifier = sdnotify.SystemdNotifier()
        os.environ.pop("NOTIFY_SOCKET", None)
        self._status = ""

    def ready(self, pid: int) -> None:
        """The generation of the master `pid` is ready, and its master is the unit's main process from now on."""
        self._notifier.notify(f"MAINPID={pid}\nREADY=1")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`; said again only when it changes."""
        if text != self._status:
            self._notifier.notify(f"STATUS={text}")
            self._status = text

    def extend_timeout(self, seconds: float) -> None:
        """Ask for so much more time, from now, to start or to stop."""
        self._notifier.notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def watchdog(self) -> None:
        """Say that we are well."""
        self._notifier.notify("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that we are going."""
        self._notifier.notify("STOPPING=1")
