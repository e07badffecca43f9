"""Notifications to systemd (sd_notify). The master sends them, because a worker does not know the other workers.

Workers only store descriptors.
"""

from __future__ import annotations

import array
import os
import select
import socket

import sdnotify

__all__ = ["ServiceManager"]


_BARRIER = 2.0  # seconds


class ServiceManager:
    """The service manager that started the unit; without $NOTIFY_SOCKET every call does nothing."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()  # reads $NOTIFY_SOCKET
        # Gunicorn would send READY=1 before the model is loaded.
        os.environ.pop("NOTIFY_SOCKET", None)
        self._status = ""
        self._stored = False

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

    def store(self, descriptor: int, name: str) -> bool:
        """Store a descriptor, which the unit's next main process is passed; returns False without a service manager.

        Raises BlockingIOError if the manager takes no message now.
        """
        self._stored = self._send(f"FDSTORE=1\nFDNAME={name}", descriptor)
        return self._stored

    def remove_stored(self, name: str) -> None:
        """Close the stored descriptors of that name: while the manager has one, its connection cannot be ended."""
        self._notifier.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def barrier(self) -> None:
        """Wait until the manager has stored everything: it ignores messages of a process that has exited."""
        if not self._stored:
            return
        reader, writer = os.pipe()
        try:
            sent = self._send("BARRIER=1", writer)
        except BlockingIOError:
            sent = False
        finally:
            os.close(writer)
        if sent:
            select.select([reader], [], [], _BARRIER)
        os.close(reader)

    def _send(self, message: str, descriptor: int) -> bool:
        channel: socket.socket | None = self._notifier.socket
        if channel is None:
            return False
        try:
            # not send_fds, which ignores the flags in Python 3.11
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
            channel.sendmsg([message.encode()], [rights], socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise
        except OSError:
            return False
        return True
