"""`glmctl operate` behind its socket, in threads instead of systemd's processes, in front of a fake glmctl."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from deploy.display import Display
from deploy.host import Host
from deploy.operate.request import answer
from deploy.rollout.plan import Context
from service.contract import operations
from tests.release_fixtures import host_in
from ui.operator import Operator

KEY = "0123456789abcdef"
SCRIPT = """\
#!/bin/sh
cd "$(dirname "$0")"
echo "$GLM_OPERATOR began: $*"
until test -e finish; do sleep 0.02; done
read -r code < finish
echo ended
exit "$code"
"""


def write_operators(host: Host, content: str = f"alice {KEY}\n", mode: int = 0o600) -> None:
    host.operators.parent.mkdir(parents=True, exist_ok=True)
    host.operators.write_text(content)
    host.operators.chmod(mode)


class OperateService:
    """Accepts as systemd does; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.host = host_in(directory)
        for path in (self.host.state, self.host.runtime):
            path.mkdir()
        write_operators(self.host)
        self._directory = directory
        self._glmctl = directory / "glmctl-of-operators"
        self._glmctl.write_text(SCRIPT)
        self._glmctl.chmod(0o755)
        self._listener = socket.socket(socket.AF_UNIX)
        self._path = operations.socket_path(self.host.runtime)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.operator = Operator(self.host.runtime)

    def __enter__(self) -> OperateService:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(0)
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def finish(self, code: int) -> None:
        """Let every glmctl end with this exit code."""
        (self._directory / "finish.new").write_text(f"{code}\n")
        (self._directory / "finish.new").rename(self._directory / "finish")

    def send(self, line: bytes, *, listen: bool = True) -> dict[str, Any]:
        """Send a line as it is and return the answer; `listen`: otherwise the connection is closed at once."""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(self._path))
            with suppress(OSError):  # what is too long is not read to its end
                channel.sendall(line)
            if not listen:
                return {}
            channel.shutdown(socket.SHUT_WR)
            with channel.makefile("rb") as stream:
                reply: dict[str, Any] = json.loads(stream.readline())
                return reply

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=[connection])
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        context = Context(self.host, Display(quiet=True))
        running = answer(context, connection, [str(self._glmctl)])
        if running is not None:
            running.wait()
