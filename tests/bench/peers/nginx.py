"""nginx in front of Uvicorn: the way of most articles."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack

from tests.bench.peers.peer import VERSIONS, Application, Peer, Process, await_version, program_version

__all__ = ["Nginx", "NginxProxy"]

_CONFIGURATION = """\
daemon off;
{user}
pid {directory}/nginx.pid;
error_log {directory}/error.log;
worker_processes auto;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000;
    upstream glm {{
        server {backend};
        keepalive 64;
        keepalive_requests 1000000;
    }}
    server {{
        listen {address};
        location / {{
            proxy_pass http://glm;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""
DRAIN = 0.5  # seconds between the reload and the end of the old process; no answer of the load takes as long


class NginxProxy(Process):
    """nginx before one server at a time."""

    def __init__(self, peer: Peer, backend: str) -> None:
        self._peer = peer
        self._path = peer.scratch / "nginx.conf"
        self.configure(backend)
        super().__init__(["nginx", "-c", str(self._path), "-p", str(peer.scratch)], peer.scratch / "nginx.log")

    def configure(self, backend: str) -> None:
        """Rewrite the upstream."""
        user = "user root;" if os.getuid() == 0 else ""
        text = _CONFIGURATION.format(
            user=user, directory=self._peer.scratch, backend=backend, address=self._peer.address
        )
        self._path.write_text(text)


class Nginx(Peer):
    """Start the new process, rewrite the upstream, reload, wait, end the old process."""

    name = "nginx reload"
    how = "upstream rewritten, reload, wait, kill"

    def versions(self) -> str:
        """See Peer."""
        return program_version("nginx", "-v")

    def start(self, stack: ExitStack) -> None:
        """See Peer."""
        self._current = self._start(VERSIONS[0])
        self._proxy = NginxProxy(self, self._current.address)
        stack.callback(self._proxy.end)
        await_version(self.address, VERSIONS[0], self._proxy)

    def prepare(self) -> None:
        """Start the new version beside the old one."""
        self._next = self._start(self.next_version)

    def switch(self) -> None:
        """Rewrite and reload."""
        self._proxy.configure(self._next.address)
        self._proxy.signal(signal.SIGHUP)
        self._old, self._current = self._current, self._next
        self.live = 1 - self.live

    def finish(self) -> None:
        """Wait, then end the old process."""
        time.sleep(DRAIN)
        self._old.end()

    def _start(self, version: str) -> Application:
        process = Application(self.release(version), self.scratch)
        self._stack.callback(process.end)
        process.await_ready()
        return process
