"""HAProxy in front of two warm servers, whose weights are changed at run time."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

from tests.bench.peers.peer import VERSIONS, Application, Peer, Process, await_version, program_version

__all__ = ["HAProxy", "HAProxyProxy"]

_CONFIGURATION = """\
global
    stats socket {directory}/haproxy.sock mode 600 level admin
    maxconn 8192
defaults
    mode http
    timeout connect 5s
    timeout client 75s
    timeout server 660s
    timeout http-keep-alive 75s
    retries 2
    retry-on conn-failure
    option redispatch
frontend glm
    bind {address}
    default_backend glm
backend glm
    balance leastconn
    http-reuse safe
{servers}
"""


class HAProxyProxy(Process):
    """HAProxy before servers with a weight each."""

    def __init__(self, peer: Peer, backends: dict[str, int]) -> None:
        """`backends`: the weights by address; the servers are named s0, s1 and so on."""
        self._socket = peer.scratch / "haproxy.sock"
        servers = "\n".join(
            f"    server s{number} {address} weight {weight}"
            for number, (address, weight) in enumerate(backends.items())
        )
        path = peer.scratch / "haproxy.cfg"
        path.write_text(_CONFIGURATION.format(directory=peer.scratch, address=peer.address, servers=servers))
        super().__init__(["haproxy", "-db", "-f", str(path)], peer.scratch / "haproxy.log")

    def command(self, text: str) -> str:
        """Run a command of the stats socket and return what it prints; raises RuntimeError for an error."""
        answer = ask(self._socket, text)
        if answer.strip():
            raise RuntimeError(f"HAProxy answers {answer.strip()!r} to {text!r}")
        return answer


def ask(path: Path, text: str) -> str:
    """Send a line to a stats socket and return the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(text.encode() + b"\n")
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


class HAProxy(Peer):
    """Both versions run; the new one gets the weight 100, then the old one the weight 0."""

    name = "HAProxy weights"
    how = "weights set over the stats socket"

    def versions(self) -> str:
        """See Peer."""
        return " ".join(program_version("haproxy", "-v").split()[:3])

    def start(self, stack: ExitStack) -> None:
        """See Peer."""
        applications = [Application(self.release(version), self.scratch) for version in VERSIONS]
        for application in applications:
            stack.callback(application.end)
        for application in applications:
            application.await_ready()
        self._proxy = HAProxyProxy(self, {applications[0].address: 100, applications[1].address: 0})
        stack.callback(self._proxy.end)
        await_version(self.address, VERSIONS[0], self._proxy)

    def switch(self) -> None:
        """See Peer."""
        new, old = 1 - self.live, self.live
        self._proxy.command(f"set server glm/s{new} weight 100")
        self._proxy.command(f"set server glm/s{old} weight 0")
        self.live = new
